//! Curves, where a variant is a point of one.

use std::fmt::Write;

use super::report::{escaped, quarter};
use super::{Place, Table, Variant};

/// Of a chart, in its own units.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
/// Left for numbers and names around it.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 130.0;
const MARGIN: f64 = 30.0;
const COLOURS: [&str; 4] = ["#79b", "#b53", "#595", "#959"];

/// A line for each curve through its medians, with the middle half of the values at each; `None` if
/// they are points of none.
pub(super) fn chart(table: &Table) -> Option<String> {
    let points = table
        .variants
        .iter()
        .map(|variant| Some((variant.place.as_ref()?, variant)));
    let points = points.collect::<Option<Vec<_>>>()?;
    let (last, _) = points.last()?;
    let top = |(_, variant): &(&Place, &Variant)| variant.median.max(quarter(&variant.runs, 3));
    let most = points.iter().map(top).fold(f64::MIN_POSITIVE, f64::max);
    let longest = points
        .iter()
        .map(|(place, _)| place.at)
        .fold(f64::MIN_POSITIVE, f64::max);
    let x = |at: f64| LEFT + at / longest * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - MARGIN - value / most * (HEIGHT - 2.0 * MARGIN);
    let (right, bottom) = (x(longest), y(0.0));
    let mut text = format!(
        "<path d=\"M{LEFT} {MARGIN}V{bottom}H{right}\" fill=\"none\" stroke=\"#000\"/>\
         <text x=\"{}\" y=\"{MARGIN}\" text-anchor=\"end\">{most:.1}</text>\
         <text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">0</text>",
        LEFT - 6.0,
        LEFT - 6.0,
    );
    let mut drawn: Vec<&str> = Vec::new();
    for line in points.iter().map(|(place, _)| place.line) {
        if drawn.contains(&line) {
            continue;
        }
        let colour = COLOURS[drawn.len() % COLOURS.len()];
        let (mut path, mut end) = (String::new(), (LEFT, bottom));
        for (place, variant) in points.iter().filter(|(place, _)| place.line == line) {
            end = (x(place.at), y(variant.median));
            let (at, median) = end;
            let (from, to) = (quarter(&variant.runs, 1), quarter(&variant.runs, 3));
            let _ = write!(path, " {at:.1},{median:.1}");
            let _ = writeln!(
                text,
                "<circle cx=\"{at:.1}\" cy=\"{median:.1}\" r=\"3\" fill=\"{colour}\"/>\
                 <path d=\"M{at:.1} {:.1}V{:.1}\" stroke=\"{colour}\"/>",
                y(from),
                y(to),
            );
            // Once for all lines.
            if drawn.is_empty() {
                let _ = writeln!(
                    text,
                    "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                    bottom + 18.0,
                    place.at
                );
            }
        }
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
            path.trim_start(),
            end.0 + 8.0,
            end.1,
            escaped(line)
        );
        drawn.push(line);
    }
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n{text}\
         <text x=\"{}\" y=\"{}\">{}</text></svg>\n",
        right + 8.0,
        bottom + 18.0,
        escaped(last.unit)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::variants;
    use super::*;

    fn table() -> Table {
        let mut variants = variants(["a", "b"], [vec![1.0], vec![3.0]]);
        for (variant, at) in variants.iter_mut().zip([1.0, 4.0]) {
            let place = Place {
                line: "a<b",
                at,
                unit: "GiB",
            };
            variant.place = Some(place);
        }
        Table {
            what: "time",
            variants,
        }
    }

    #[test]
    fn a_curve_goes_from_its_first_median_to_its_last() {
        let svg = chart(&table()).expect("they are points");
        assert!(svg.contains("points=\"172.5,163.3 510.0,30.0\""), "{svg}");
        // Both are named on the axis.
        assert!(
            svg.contains(">1</text>") && svg.contains(">4</text>"),
            "{svg}"
        );
        assert!(svg.contains(">a&lt;b</text>"));
    }

    #[test]
    fn bars_are_no_curve() {
        let mut bars = table();
        bars.variants[1].place = None;
        assert_eq!(chart(&bars), None);
    }
}
