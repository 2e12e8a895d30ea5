//! What was measured, as tables in Markdown or as a page with a chart for each.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Breakdown, Report, Table, curve};

/// Of a chart, in its own units.
const WIDTH: f64 = 640.0;
const ROW: f64 = 26.0;
/// Where bars begin, and what is left for the median's value at their end.
const LEFT: f64 = 260.0;
const RIGHT: f64 = 90.0;

/// Of each table that is a curve its place among the tables, and where its chart is.
pub(super) type Charts = BTreeMap<usize, String>;

/// Draws them into `folder`, to be referred to from beside it.
pub(super) fn draw(report: &Report, folder: &Path) -> Result<Charts> {
    let beside = folder.file_name().context("a folder without a name")?;
    fs::create_dir_all(folder)?;
    let mut charts = Charts::new();
    for (place, table) in report.tables.iter().enumerate() {
        if let Some(chart) = curve::chart(table) {
            let name = format!("{}-{place}.svg", report.name);
            fs::write(folder.join(&name), chart)?;
            charts.insert(place, format!("{}/{name}", beside.to_string_lossy()));
        }
    }
    Ok(charts)
}

pub(super) fn markdown(report: &Report, charts: &Charts) -> String {
    let mut text = format!("## {}\n\n{}\n", report.name, report.machine);
    for (place, table) in report.tables.iter().enumerate() {
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
        if let Some(chart) = charts.get(&place) {
            let _ = write!(text, "\n![{}]({chart})\n", table.what);
        }
    }
    for goal in &report.goals {
        let _ = write!(text, "\n{goal}\n");
    }
    for breakdown in &report.breakdowns {
        let Breakdown {
            what,
            columns,
            rows,
        } = breakdown;
        let rule = "|---".repeat(columns.len() + 1);
        let _ = write!(text, "\n{what}\n\n| | {} |\n{rule}|\n", columns.join(" | "));
        for (name, values) in rows {
            let values: Vec<_> = values.iter().map(|value| format!("{value:.1}")).collect();
            let _ = writeln!(text, "| {name} | {} |", values.join(" | "));
        }
    }
    for note in &report.notes {
        let _ = write!(text, "\n{note}\n");
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
        for breakdown in &report.breakdowns {
            text += &table(breakdown);
        }
        for note in &report.notes {
            let _ = writeln!(text, "<p>{}</p>", escaped(note));
        }
    }
    text
}

fn table(breakdown: &Breakdown) -> String {
    let cell = |text: &str| format!("<td>{}</td>", escaped(text));
    let columns: String = breakdown.columns.iter().map(|name| cell(name)).collect();
    let mut text = format!(
        "<h3>{}</h3>\n<table>\n<tr><td></td>{columns}</tr>\n",
        escaped(&breakdown.what)
    );
    for (name, values) in &breakdown.rows {
        let values = values.iter().map(|value| cell(&format!("{value:.1}")));
        let values: String = values.collect();
        let _ = writeln!(text, "<tr>{}{values}</tr>", cell(name));
    }
    text + "</table>\n"
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
    use super::super::{Place, variants};
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
            breakdowns: vec![Breakdown {
                what: "shares".into(),
                columns: vec!["one", "two"],
                rows: vec![("row".into(), vec![1.0, 2.25])],
            }],
            notes: vec!["why".into()],
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
    fn a_curve_is_drawn_beside_the_page_that_shows_it() {
        let mut report = report();
        report.name = "growth";
        for (variant, at) in report.tables[0].variants.iter_mut().zip([1.0, 2.0]) {
            let (line, unit) = ("line", "GiB");
            variant.place = Some(Place { line, at, unit });
        }
        let folder = tempfile::tempdir().expect("there is room");
        let charts = draw(&report, &folder.path().join("page")).expect("it can be drawn");
        let chart = fs::read_to_string(folder.path().join("page/growth-0.svg"));
        assert!(chart.expect("it is there").starts_with("<svg"));
        let text = markdown(&report, &charts);
        assert!(text.contains("\n![time](page/growth-0.svg)\n"), "{text}");
    }

    #[test]
    fn tables_are_followed_by_goals_and_what_explains_them() {
        let end = "3.000 |\n\ngoal\n\nshares\n\n| | one | two |\n|---|---|---|\n\
                   | row | 1.0 | 2.2 |\n\nwhy\n";
        let text = markdown(&report(), &Charts::new());
        assert!(text.ends_with(end), "{text}");
    }
}
