//! A picture of the table: for each task a bar for the head alone, one for the adapter on the device's code and one for full fine-tuning. Bars of
//! fractions are better the longer they are, those of bits, which come below and have a scale of their own, the shorter.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::{Color as _, IntoDrawingArea as _, RGBColor, Rectangle, SVGBackend, Text};
use plotters::style::IntoFont as _;

use super::table::{Row, number};

const WIDTH: i32 = 760;
/// Where bars start and how long one of 100 % is.
const BARS: (i32, i32) = (190, 480);
/// Height of a bar and of the three of a task with what is between them.
const BAR: i32 = 11;
const ROW: i32 = 46;
const INK: RGBColor = RGBColor(60, 60, 60);
const HEAD: RGBColor = RGBColor(190, 190, 190);
const ADAPTER: RGBColor = RGBColor(40, 110, 170);
const FULL: RGBColor = RGBColor(225, 160, 70);
const LEGEND: [(RGBColor, &str); 3] =
    [(HEAD, "a new head on the frozen base"), (ADAPTER, "LoRA, device's code"), (FULL, "full fine-tuning")];

/// Writes the picture as SVG.
pub(super) fn write(path: &Path, rows: &[Row]) -> Result<()> {
    // The base itself has no bar.
    let drawn = rows.iter().filter(|row| values(row).iter().any(Option::is_some));
    let (bits, mut rows): (Vec<&Row>, Vec<&Row>) = drawn.partition(|row| row.is_text());
    let most = bits.iter().flat_map(|row| values(row)).flatten().fold(f64::MIN_POSITIVE, f64::max);
    rows.extend(bits);
    let height = ROW * rows.len() as i32 + 36;
    let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw {}: {error}", path.display());
    area.fill(&RGBColor(255, 255, 255)).map_err(|error| failed(&error))?;
    let write = |text: String, size: i32, at: (i32, i32)| {
        let font = ("sans-serif", size).into_font().color(&INK);
        area.draw(&Text::new(text, at, font)).map_err(|error| failed(&error))
    };
    let bar = |(left, top): (i32, i32), length: i32, color: RGBColor| {
        let corners = [(left, top), (left + length, top + BAR)];
        area.draw(&Rectangle::new(corners, color.filled())).map_err(|error| failed(&error))
    };
    for (index, row) in (0..).zip(rows) {
        let top = 8 + index * ROW;
        write(row.task.clone(), 14, (10, top + 11))?;
        if row.is_text() {
            write("bits, fewer are better".to_owned(), 10, (10, top + 27))?;
        }
        let whole = if row.is_text() { most } else { 1.0 };
        for (line, (value, color)) in (0..).zip(values(row).into_iter().zip([HEAD, ADAPTER, FULL])) {
            let Some(value) = value else { continue };
            let (at, length) = ((BARS.0, top + (BAR + 1) * line), (f64::from(BARS.1) * value / whole) as i32);
            bar(at, length, color)?;
            write(number(&row.metric, value), 12, (at.0 + length + 6, at.1))?;
        }
    }
    for (place, (color, what)) in (0..).zip(LEGEND) {
        let at = (BARS.0 + 200 * place, height - 24);
        bar(at, BAR, color)?;
        write(what.to_owned(), 12, (at.0 + 18, at.1))?;
    }
    area.present().map_err(|error| failed(&error))
}

/// What the bars of a task say, in their order.
fn values(row: &Row) -> [Option<f64>; 3] {
    [row.head_only, row.over(|run| run.streamed).map(|(mean, _)| mean), row.full]
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::row;
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let folder = std::env::temp_dir().join(format!("rankpatch-picture-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("tasks.svg");
        let bits = Row { head_only: None, full: Some(2.5), ..row("n", "bits_per_character", &[3.0]) };
        write(&path, &[bits, row("t", "accuracy", &[0.75])]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        for value in [0.5, 0.75, 0.91, 2.5 / 3.0, 1.0] {
            let bar = format!("width=\"{}\"", (480.0 * value) as i32);
            assert!(svg.contains(&bar), "{bar}: {svg}");
        }
        assert!(svg.find("75.0").unwrap() < svg.find("3.000").unwrap(), "fractions come first");
    }
}
