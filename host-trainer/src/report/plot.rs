//! The report's plots, as SVG to be set into a page.
//!
//! An [`Ink`] is a colour that no one is meant to see: the page's style gives each its real one, in light and in dark. There is no
//! text in a plot but the numbers on its axes. This module knows numbers; it does not know what they mean.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::{
    ChartBuilder, Circle, Color as _, DashedLineSeries, DrawingArea, IntoDrawingArea as _, IntoFont as _,
    LineSeries, RGBColor, Rectangle, SVGBackend, ShapeStyle,
};
use plotters::style::{FontFamily, IntoTextStyle as _};

/// Width and height of a plot in units of its own; the page scales it. Large, since positions are whole numbers.
const SIZE: (u32, u32) = (960, 460);
/// Width and height of a row of bars.
const BARS: (u32, u32) = (240, 56);
/// Height of the numbers on the axes.
const FONT: i32 = 27;
/// Room for the numbers beside and below a plot.
const MARGINS: (u32, u32) = (112, 48);
/// Most points of a curve: more cannot be told apart.
const MAX_POINTS: usize = 320;

/// What drawing may refuse.
pub(super) type PlotError = plotters::drawing::DrawingAreaErrorKind<std::io::Error>;

/// What is drawn with; each has a colour in the page's style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// Lines of the grid.
    Grid = 1,
    /// Numbers on the axes.
    Text,
    /// The main curve.
    Main,
    /// What it was smoothed from, or a part of many.
    Faint,
    /// Another quantity.
    Other,
    /// A value to compare with.
    Rule,
    /// A part of the plot.
    Shade,
}

impl Ink {
    /// Each with the name of its colour in the page's style.
    pub(super) const ALL: [(Self, &'static str); 7] = [
        (Self::Grid, "grid"),
        (Self::Text, "muted"),
        (Self::Main, "main"),
        (Self::Faint, "faint"),
        (Self::Other, "other"),
        (Self::Rule, "rule"),
        (Self::Shade, "shade"),
    ];

    fn color(self) -> RGBColor {
        let part = self as u8;
        RGBColor(part, part, part)
    }

    /// The colour as it stands in the plot.
    pub(super) fn code(self) -> String {
        let part = self as u8;
        format!("#{part:02X}{part:02X}{part:02X}")
    }

    fn line(self, width: u32) -> ShapeStyle {
        self.color().stroke_width(width)
    }
}

/// Points joined by a line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Curve {
    pub(super) points: Vec<(f64, f64)>,
    pub(super) ink: Ink,
    /// Width of the line.
    pub(super) width: u32,
    /// Whether each point is marked.
    pub(super) dots: bool,
}

/// Curves over whole numbers: steps, or components.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Plot {
    /// In the order in which they are drawn.
    pub(super) curves: Vec<Curve>,
    /// Values to compare with, as dashed lines.
    pub(super) rules: Vec<(f64, Ink)>,
    /// The part from this place to the end is shaded.
    pub(super) shade_from: Option<f64>,
    /// Whether the vertical axis starts at 0.
    pub(super) from_zero: bool,
}

impl Plot {
    /// The plot as an `svg` element; `None` if there is nothing finite to draw.
    ///
    /// # Errors
    /// None: writing into memory does not fail.
    pub(super) fn svg(&self) -> Result<Option<String>, PlotError> {
        let points = || self.curves.iter().flat_map(|curve| &curve.points).filter(|point| is_finite(**point));
        if points().next().is_none() {
            return Ok(None);
        }
        let x = range(points().map(|point| point.0), 0.0, false);
        let rules = self.rules.iter().map(|rule| rule.0).filter(|value| value.is_finite());
        let y = range(points().map(|point| point.1).chain(rules), 0.06, self.from_zero);
        draw(SIZE, |area| self.draw(area, x, y)).map(Some)
    }

    fn draw(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        x: Range<f64>,
        y: Range<f64>,
    ) -> Result<(), PlotError> {
        let mut chart = ChartBuilder::on(area)
            .margin_top(14)
            .margin_right(28)
            .y_label_area_size(MARGINS.0)
            .x_label_area_size(MARGINS.1)
            .build_cartesian_2d(x.clone(), y.clone())?;
        if let Some(from) = self.shade_from.filter(|from| *from < x.end) {
            let corners = [(from.max(x.start), y.start), (x.end, y.end)];
            chart.draw_series([Rectangle::new(corners, Ink::Shade.color().filled())])?;
        }
        let y_span = y.end - y.start;
        let text = (FontFamily::SansSerif, FONT).into_font().color(&Ink::Text.color());
        let text = text.into_text_style(area);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .max_light_lines(0)
            .x_labels(6)
            .y_labels(5)
            .bold_line_style(Ink::Grid.line(2))
            .axis_style(Ink::Grid.line(2))
            .label_style(text)
            .x_label_formatter(&|value| whole(*value))
            .y_label_formatter(&|value| number(*value, y_span))
            .draw()?;
        for (value, ink) in self.rules.iter().filter(|rule| rule.0.is_finite()) {
            let ends = [(x.start, *value), (x.end, *value)];
            chart.draw_series(DashedLineSeries::new(ends, 12, 10, ink.line(4)))?;
        }
        for Curve { points, ink, width, dots } in &self.curves {
            let points = || points.iter().copied().filter(|point| is_finite(*point));
            chart.draw_series(LineSeries::new(points(), ink.line(*width)))?;
            if *dots {
                chart.draw_series(points().map(|point| Circle::new(point, 7, ink.color().filled())))?;
            }
        }
        Ok(())
    }
}

/// Bars of these heights, 0 or more, side by side.
///
/// # Errors
/// None: writing into memory does not fail.
pub(super) fn bars(heights: &[f64]) -> Result<String, PlotError> {
    let top = heights.iter().copied().filter(|height| height.is_finite()).fold(0.0, f64::max);
    let (width, height) = (f64::from(BARS.0), f64::from(BARS.1));
    let pitch = (width / heights.len().max(1) as f64).min(30.0);
    let gap = if pitch >= 6.0 { 3.0 } else { 0.0 };
    draw(BARS, |area| {
        for (at, value) in heights.iter().enumerate().filter(|(_, value)| value.is_finite()) {
            // A value of nothing still has its place.
            let share = if top > 0.0 { value / top } else { 0.0 };
            let tall = (share * height).max(2.0);
            let left = at as f64 * pitch;
            let corners = [
                (left as i32, (height - tall) as i32),
                ((left + (pitch - gap).max(1.0)) as i32, height as i32),
            ];
            area.draw(&Rectangle::new(corners, Ink::Main.color().filled()))?;
        }
        Ok(())
    })
}

fn draw(
    size: (u32, u32),
    body: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), PlotError>,
) -> Result<String, PlotError> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    body(&area)?;
    area.present()?;
    drop(area);
    Ok(svg)
}

/// Means over runs of neighbours, so that no more than [`MAX_POINTS`] are left.
pub(super) fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let each = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let sum = part.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / part.len() as f64, sum.1 / part.len() as f64)
    };
    points.chunks(each).map(mean).collect()
}

/// An exponential mean of the values over about `span` of them, as if the first had always been there a little.
pub(super) fn smoothed(points: &[(f64, f64)], span: usize) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / span.max(1) as f64;
    let (mut sum, mut weight) = (0.0, 0.0);
    let next = |(x, y): &(f64, f64)| {
        sum = keep * sum + y;
        weight = keep * weight + 1.0;
        (*x, sum / weight)
    };
    points.iter().map(next).collect()
}

fn is_finite(point: (f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

/// From the least to the greatest value, with a margin of this part of the distance; never empty.
fn range(values: impl Iterator<Item = f64>, margin: f64, from_zero: bool) -> Range<f64> {
    let (mut low, mut high) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if from_zero {
        low = low.min(0.0);
    }
    if high - low <= 1e-12 * high.abs().max(1e-12) {
        let more = high.abs().max(1.0) * 0.5;
        return low - more..high + more;
    }
    let more = margin * (high - low);
    high += more;
    // An axis that starts at zero touches it.
    if !(from_zero && low == 0.0) {
        low -= more;
    }
    low..high
}

/// A number on the horizontal axis, where only whole ones mean something.
fn whole(value: f64) -> String {
    if (value - value.round()).abs() < 1e-9 { format!("{value:.0}") } else { String::new() }
}

/// A number on an axis of this length, as short as it can be told from its neighbours.
fn number(value: f64, span: f64) -> String {
    let value = if value.abs() < 1e-9 * span { 0.0 } else { value };
    if value != 0.0 && (span < 1e-3 || value.abs() >= 1e6) {
        let text = format!("{value:.2e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{exponent}", without_zeros(digits));
    }
    let decimals = (2.0 - span.log10()).ceil().clamp(0.0, 8.0) as usize;
    without_zeros(&format!("{value:.decimals$}")).to_owned()
}

fn without_zeros(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_short_as_their_axis_allows() {
        let found = [
            (0.25, 1.0),
            (0.3, 0.8),
            (1500.0, 3000.0),
            (0.0025, 0.005),
            (1e-17, 1.0),
            (2e-4, 5e-4),
            (0.0, 1e-5),
        ]
        .map(|(value, span)| number(value, span));
        assert_eq!(found, ["0.25", "0.3", "1500", "0.0025", "0", "2e-4", "0"]);
        assert_eq!(number(2_500_000.0, 1e7), "2.5e6");
        assert_eq!(number(0.1 + 0.2, 1.0), "0.3");
    }

    #[test]
    fn axes_hold_every_value_and_are_never_empty() {
        assert_eq!(range([2.0, 4.0].into_iter(), 0.5, false), 1.0..5.0);
        assert_eq!(range([2.0, 4.0].into_iter(), 0.25, true), 0.0..5.0);
        assert_eq!(range([7.0].into_iter(), 0.1, false), 3.5..10.5);
        assert_eq!(range([0.0, 0.0].into_iter(), 0.1, true), -0.5..0.5);
    }

    #[test]
    fn curves_are_thinned_to_means_and_smoothed_without_a_start_from_zero() {
        let points: Vec<(f64, f64)> = (0..1000).map(|x| (f64::from(x), 3.0)).collect();
        let thin = thinned(&points);
        assert_eq!((thin.len(), thin[0]), (250, (1.5, 3.0)));
        assert!(smoothed(&points, 20).iter().all(|point| (point.1 - 3.0).abs() < 1e-12));
        let steps = [(0.0, 0.0), (1.0, 1.0)];
        assert!((smoothed(&steps, 2)[1].1 - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_plot_has_what_it_is_given_and_stands_odd_numbers() {
        let curve =
            |points: &[(f64, f64)]| Curve { points: points.to_vec(), ink: Ink::Main, width: 4, dots: true };
        let plot =
            Plot { curves: vec![curve(&[(1.0, 0.5), (2.0, f64::NAN), (3.0, 0.75)])], ..Plot::default() };
        let svg = plot.svg().unwrap().unwrap();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(
            svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains(&Ink::Main.code())
        );
        assert_eq!(Plot::default().svg().unwrap(), None);
        assert_eq!(Plot { curves: vec![curve(&[(f64::NAN, 1.0)])], ..Plot::default() }.svg().unwrap(), None);
        for points in [
            &[(1.0, 2.0)][..],
            &[(1.0, 0.0), (2.0, 0.0)],
            &[(5.0, 1e-30), (6.0, 2e-30)],
            &[(0.0, -1e30), (1.0, 1e30)],
        ] {
            let plot = Plot {
                curves: vec![curve(points)],
                rules: vec![(f64::INFINITY, Ink::Rule)],
                ..Plot::default()
            };
            assert!(plot.svg().unwrap().is_some(), "{points:?}");
        }
        assert_eq!(bars(&[3.0, 0.0, 1.0]).unwrap().matches("<rect").count(), 3);
        assert_eq!(bars(&[]).unwrap().matches("<rect").count(), 0);
    }
}
