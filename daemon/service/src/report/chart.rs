//! A line chart as inline SVG.

use std::fmt::Write;

use super::escape;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 28.0;
/// More points than this do not show; each bucket keeps its extremes.
const MOST_POINTS: usize = 600;

pub struct Series {
    pub name: &'static str,
    /// `a` or `b`: the colour.
    pub class: &'static str,
    pub points: Vec<(f64, f64)>,
    /// With a dot at each point: few points, each measured.
    pub marked: bool,
}

pub struct Chart {
    pub title: &'static str,
    pub series: Vec<Series>,
    /// Digits behind the point of the axis.
    pub digits: usize,
}

impl Chart {
    /// A `figure`, or nothing if there are no points.
    pub fn svg(&self) -> String {
        let finite = |series: &Series| -> Vec<(f64, f64)> {
            series.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect()
        };
        let lines: Vec<(&Series, Vec<(f64, f64)>)> =
            self.series.iter().map(|s| (s, finite(s))).filter(|(_, points)| !points.is_empty()).collect();
        let all = || lines.iter().flat_map(|(_, points)| points.iter().copied());
        if lines.is_empty() {
            return String::new();
        }
        let (x0, x1) = range(all().map(|p| p.0));
        let (y0, y1) = range(all().map(|p| p.1));
        let ticks = ticks(y0, y1);
        let (y0, y1) = (y0.min(ticks[0]), y1.max(ticks[ticks.len() - 1]));
        let x = |value: f64| LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);

        let mut svg = format!("<figure><figcaption>{}", escape(self.title));
        if lines.len() > 1 {
            for (series, _) in &lines {
                let _ = write!(svg, " <i class=\"{}\">{}</i>", series.class, escape(series.name));
            }
        }
        let _ = write!(
            svg,
            "</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(self.title)
        );
        for tick in &ticks {
            let at = y(*tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{}\" y=\"{:.1}\" class=\"left\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                label(*tick, self.digits)
            );
        }
        for (value, class) in [(x0, "start"), (x1, "end")] {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" class=\"{class}\">step {value:.0}</text>",
                x(value),
                HEIGHT - 8.0
            );
        }
        for (series, points) in &lines {
            let path: String = thinned(points).iter().map(|p| format!("{:.1},{:.1} ", x(p.0), y(p.1))).collect();
            let _ = write!(svg, "<polyline class=\"{}\" points=\"{}\"/>", series.class, path.trim_end());
            // A line of one point is invisible.
            if series.marked || points.len() == 1 {
                for point in points {
                    let _ = write!(
                        svg,
                        "<circle class=\"{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                        series.class,
                        x(point.0),
                        y(point.1)
                    );
                }
            }
        }
        svg.push_str("</svg></figure>\n");
        svg
    }
}

/// Smallest and largest, never equal.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low < high { (low, high) } else { (low - 0.5 * low.abs().max(1e-9), high + 0.5 * high.abs().max(1e-9)) }
}

/// Four to seven round numbers that span `low` to `high`.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 4.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough).unwrap_or(10.0 * power);
    let first = (low / step).floor();
    let last = (high / step).ceil();
    (0..=(last - first) as usize).map(|index| (first + index as f64) * step).collect()
}

fn label(value: f64, digits: usize) -> String {
    if digits > 3 && value != 0.0 { format!("{value:.1e}") } else { format!("{value:.digits$}") }
}

/// At most [`MOST_POINTS`] points with every spike kept.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MOST_POINTS {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(MOST_POINTS);
    for bucket in points.chunks(points.len().div_ceil(MOST_POINTS / 2)) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (Some(low), Some(high)) = (bucket.iter().min_by(by_value), bucket.iter().max_by(by_value)) else {
            continue;
        };
        if low.0 <= high.0 {
            kept.extend([*low, *high]);
        } else {
            kept.extend([*high, *low]);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_span() {
        assert_eq!(ticks(0.0, 4.0), [0.0, 1.0, 2.0, 3.0, 4.0]);
        let fine = ticks(1.37, 3.91);
        assert!(fine[0] <= 1.37 && *fine.last().unwrap() >= 3.91 && fine.len() <= 8, "{fine:?}");
        let tiny = ticks(1e-7, 2e-4);
        assert!(tiny.len() >= 3 && tiny.len() <= 8, "{tiny:?}");
    }

    #[test]
    fn thinning_keeps_spikes() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[7_777].1 = 9.0;
        let thin = thinned(&points);
        assert!(thin.len() <= MOST_POINTS + 2);
        assert!(thin.contains(&(7_777.0, 9.0)));
    }

    #[test]
    fn constants_nan_and_single_points_are_drawn() {
        for points in [vec![(1.0, 0.0)], vec![(1.0, 2.0), (2.0, 2.0)], vec![(1.0, f64::NAN), (2.0, 1.0)]] {
            let chart =
                Chart { title: "t", series: vec![Series { name: "n", class: "a", points, marked: false }], digits: 2 };
            let svg = chart.svg();
            assert!(svg.contains("<polyline") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        let empty = Chart { title: "t", series: vec![], digits: 2 };
        assert_eq!(empty.svg(), "");
    }
}
