//! What was measured, as tables in Markdown or as a page with a chart for each.

use std::fmt::Write;

use super::{Report, Table, curve};

/// Of a chart, in its own units.
const WIDTH: f64 = 640.0;
const ROW: f64 = 26.0;
/// Where bars begin, and what is left for the median's value at their end.
const LEFT: f64 = 260.0;
const RIGHT: f64 = 90.0;

pub(super) fn markdown(report: &Report) -> String {
    let mut text = format!("## {}\n\n{}\n", report.name, report.machine);
    for table in &report.tables {
        let _ = write!(
            text,
            "\n{}\n\n\
             | variant | runs | min | median | max | ratio of medians | median of paired ratios |\n\
             |---|---|---|---|---|---|---|\n",
            table.what
        );
        for variant in &table.variants {
            let _ = writeln!(
                text,
                "| {} | {} | {:.2} | {:.2} | {:.2} | {:.3} | {:.3} |",
                variant.name,
                variant.runs.len(),
                variant.min,
                variant.median,
                variant.max,
                variant.ratio,
                variant.paired_ratio
            );
        }
    }
    for goal in &report.goals {
        let _ = write!(text, "\n{goal}\n");
    }
    text
}

/// A page that needs no other file.
pub(super) fn html(reports: &[Report]) -> String {
    let mut text = String::from(
        "<!DOCTYPE html>\n<meta charset=\"utf-8\">\n<title>vferry: side by side</title>\n\
         <style>body{font:15px sans-serif;max-width:48em;margin:2em auto}svg{width:100%}\
         </style>\n",
    );
    for report in reports {
        let (name, machine) = (escaped(report.name), escaped(&report.machine));
        let _ = write!(text, "<h2>{name}</h2>\n<p>{machine}</p>\n");
        for table in &report.tables {
            let chart = curve::chart(table).unwrap_or_else(|| chart(table));
            let _ = write!(text, "<h3>{}</h3>\n{chart}", escaped(table.what));
        }
        for goal in &report.goals {
            let _ = writeln!(text, "<p>{}</p>", escaped(goal));
        }
    }
    text
}

/// A bar for each median, and a line across the middle half of the values.
///
/// The greatest is left to the table: one that another program on the machine has made a
/// hundred times greater leaves nothing of the bars.
fn chart(table: &Table) -> String {
    let reach = |variant: &super::Variant| variant.median.max(quarter(&variant.runs, 3));
    let most = table.variants.iter().map(reach).fold(0.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / if most > 0.0 { most } else { 1.0 };
    let (mut text, mut top) = (String::new(), 0.0);
    for variant in &table.variants {
        let (bar, line) = (variant.median * scale, top + ROW / 2.0);
        let (from, to) = (quarter(&variant.runs, 1), quarter(&variant.runs, 3));
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{}\" width=\"{bar:.1}\" height=\"{}\" fill=\"#79b\"/>\
             <path d=\"M{:.1} {line}H{:.1}\" stroke=\"#000\"/>\
             <text x=\"{:.1}\" y=\"{}\">{:.2} ({:.2}x)</text>",
            LEFT - 6.0,
            line + 5.0,
            escaped(variant.name),
            top + 4.0,
            ROW - 8.0,
            LEFT + from * scale,
            LEFT + to * scale,
            LEFT + bar.max(to * scale) + 6.0,
            line + 5.0,
            variant.median,
            variant.paired_ratio
        );
        top += ROW;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n{text}</svg>\n"
    )
}

/// The value below which so many quarters of them are; 0 of none.
pub(super) fn quarter(values: &[f64], quarters: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = sorted.len().saturating_sub(1) * quarters / 4;
    sorted.get(place).copied().unwrap_or(0.0)
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::variants;
    use super::*;

    fn report() -> Report {
        Report {
            name: "a<b",
            machine: "some & other".into(),
            tables: vec![Table {
                what: "time",
                variants: variants(
                    ["base", "other"],
                    [vec![1.0, 2.0, 3.0], vec![4.0, 4.0, 9.0]],
                ),
            }],
            goals: vec!["goal".into()],
        }
    }

    #[test]
    fn a_page_escapes_what_it_shows_and_draws_the_median() {
        let page = html(&[report()]);
        assert!(page.contains("<h2>a&lt;b</h2>\n<p>some &amp; other</p>"));
        // The longest of the bars has all the room.
        assert!(page.contains("width=\"290.0\""), "{page}");
        assert!(page.contains(">4.00 (3.00x)</text>"));
    }

    #[test]
    fn a_table_ends_with_its_goals() {
        assert!(markdown(&report()).ends_with("3.000 |\n\ngoal\n"));
    }
}
