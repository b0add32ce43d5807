//! A picture of the table: for each task with classes a bar for the head alone and one for the adapter on the device's code.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::{Color as _, IntoDrawingArea as _, RGBColor, Rectangle, SVGBackend, Text};
use plotters::style::IntoFont as _;

use super::table::{Row, number};

const WIDTH: i32 = 760;
/// Where bars start and how long one of 100 % is.
const BARS: (i32, i32) = (190, 480);
const ROW: i32 = 34;
const INK: RGBColor = RGBColor(60, 60, 60);
const HEAD: RGBColor = RGBColor(190, 190, 190);
const ADAPTER: RGBColor = RGBColor(40, 110, 170);

/// Writes the picture as SVG.
pub(super) fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.metric != "bits_per_character").collect();
    let height = ROW * (rows.len() as i32 + 1);
    let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw {}: {error}", path.display());
    area.fill(&RGBColor(255, 255, 255)).map_err(|error| failed(&error))?;
    let font = ("sans-serif", 14).into_font().color(&INK);
    let write = |text: String, at: (i32, i32)| {
        area.draw(&Text::new(text, at, font.clone())).map_err(|error| failed(&error))
    };
    for (index, row) in (0..).zip(rows) {
        let top = 8 + index * ROW;
        write(row.task.clone(), (10, top + 5))?;
        let adapter = row.over(|run| run.streamed).map(|(mean, _)| mean);
        for (line, (value, color)) in (0..).zip([(row.head_only, HEAD), (adapter, ADAPTER)]) {
            let Some(value) = value else { continue };
            let (left, y) = (BARS.0, top + 12 * line);
            let right = left + (f64::from(BARS.1) * value) as i32;
            area.draw(&Rectangle::new([(left, y), (right, y + 11)], color.filled()))
                .map_err(|error| failed(&error))?;
            write(number(&row.metric, value), (right + 6, y - 1))?;
        }
    }
    write(
        "grey: a new head on the frozen base; blue: the adapter, device code".into(),
        (BARS.0, height - 22),
    )?;
    area.present().map_err(|error| failed(&error))
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
        write(&path, &[row("t", "accuracy", &[0.75]), row("n", "bits_per_character", &[3.0])]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let bar = |value: f64| format!("width=\"{}\"", (480.0 * value) as i32);
        assert!(svg.contains(&bar(0.5)) && svg.contains(&bar(0.75)), "{svg}");
        assert!(!svg.contains("3.000"), "what is no fraction has no bar");
    }
}
