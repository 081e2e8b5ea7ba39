//! The loss over the steps, drawn.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::checkpoint::Course;
use super::output::write;

/// Steps whose mean makes a point of the training loss.
const SMOOTHING: usize = 10;

/// Writes the course of training as an SVG.
pub(super) fn draw(path: &Path, course: &Course) -> Result<()> {
    let svg = svg(course).map_err(|e| anyhow!("cannot draw the curve: {e}"))?;
    write(path, svg.as_bytes())
}

fn svg(course: &Course) -> Result<String, Box<dyn std::error::Error>> {
    let mean = |(i, losses): (usize, &[f32])| {
        let step = i * SMOOTHING + losses.len();
        (
            step as f64,
            f64::from(losses.iter().sum::<f32>() / losses.len() as f32),
        )
    };
    let training: Vec<_> = course
        .losses
        .chunks(SMOOTHING)
        .enumerate()
        .map(mean)
        .collect();
    let validation = course.validations.iter();
    let validation: Vec<_> = validation
        .map(|(step, loss)| (*step as f64, f64::from(*loss)))
        .collect();
    let losses = || training.iter().chain(&validation).map(|(_, loss)| *loss);
    let (low, high) = match losses().filter(|loss| loss.is_finite()).reduce(f64::min) {
        Some(low) => (
            low,
            losses().filter(|loss| loss.is_finite()).fold(low, f64::max),
        ),
        // Without a loss there are axes. Plotters never ends on ranges without end.
        None => (0.0, 1.0),
    };
    let margin = 0.05 * (high - low).max(0.01);
    let end = (course.losses.len() as f64).max(1.0);

    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (720, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..end, low - margin..high + margin)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("step")
            .y_desc("loss a token")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.2}"))
            .draw()?;
        for (name, color, points) in [
            ("training", RGBColor(90, 140, 200), training),
            ("validation", RGBColor(200, 90, 40), validation),
        ] {
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE)
            .border_style(RGBColor(200, 200, 200))
            .draw()?;
        root.present()?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_losses_are_drawn() {
        let course = Course {
            losses: (0..50).map(|i| 5.0 - i as f32 * 0.02).collect(),
            validations: vec![(25, 4.6), (50, 4.3)],
            n_worse: 0,
        };
        let text = svg(&course).unwrap();
        assert!(text.starts_with("<svg") && text.contains("loss a token"));
        // Each has its line and its key.
        for color in ["#5A8CC8", "#C85A28"] {
            let stroke = format!("stroke=\"{color}\"");
            assert_eq!(text.matches(&stroke).count(), 2, "{color}");
        }
        assert!(svg(&Course::default()).is_ok());
    }
}
