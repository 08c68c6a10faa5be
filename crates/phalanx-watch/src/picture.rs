//! A deadlock as a picture: the parties around a circle, an arrow from each to whom it needs.

use std::f64::consts::TAU;
use std::fmt::Write as _;

use crate::report::Deadlock;

const WIDTH: f64 = 230.0;
const HEIGHT: f64 = 44.0;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Moves from `from` towards `to` until outside of the box around `from`.
fn leave_box(from: (f64, f64), to: (f64, f64)) -> (f64, f64) {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    if dx == 0.0 && dy == 0.0 {
        return (from.0, from.1 - HEIGHT / 2.0);
    }
    let by = (WIDTH / 2.0 / dx.abs())
        .min(HEIGHT / 2.0 / dy.abs())
        .min(1.0);
    (from.0 + dx * by, from.1 + dy * by)
}

pub(crate) fn draw(deadlock: &Deadlock) -> String {
    let count = deadlock.parties.len();
    let radius = (count as f64 * 45.0).max(140.0);
    let middle = (radius + WIDTH * 0.75, radius + HEIGHT * 2.0);
    let place = |i: usize| {
        let angle = TAU * i as f64 / count.max(1) as f64 - TAU / 4.0;
        (
            middle.0 + radius * angle.cos(),
            middle.1 + radius * angle.sin(),
        )
    };
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{:.0}\" font-family=\"sans-serif\" font-size=\"12\">",
        middle.0 * 2.0,
        middle.1 * 2.0
    );
    svg.push_str("<defs><marker id=\"tip\" markerWidth=\"10\" markerHeight=\"8\" refX=\"9\" refY=\"4\" orient=\"auto\"><path d=\"M0,0 L10,4 L0,8 z\" fill=\"#b00\"/></marker></defs>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n");
    for (i, party) in deadlock.parties.iter().enumerate() {
        let here = place(i);
        let there = party.needs.map_or(middle, place);
        let (from, to) = (leave_box(here, there), leave_box(there, here));
        let label = escape(&party.waits_for.to_string());
        if party.needs == Some(i) {
            let (x, y) = (here.0 + WIDTH / 2.0, here.1);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.0},{:.0} c60,-40 60,60 0,24\" fill=\"none\" stroke=\"#b00\" stroke-width=\"2\" marker-end=\"url(#tip)\"/><text x=\"{:.0}\" y=\"{:.0}\" fill=\"#b00\">{label}</text>",
                y - 12.0,
                x - WIDTH / 2.0,
                y + HEIGHT
            );
            continue;
        }
        let _ = writeln!(
            svg,
            "<line x1=\"{:.0}\" y1=\"{:.0}\" x2=\"{:.0}\" y2=\"{:.0}\" stroke=\"#b00\" stroke-width=\"2\" marker-end=\"url(#tip)\"/>",
            from.0, from.1, to.0, to.1
        );
        // Nearer to where it begins, so that the labels of two arrows on one line do not meet.
        let at = (from.0 * 0.65 + to.0 * 0.35, from.1 * 0.65 + to.1 * 0.35);
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#b00\" stroke=\"white\" stroke-width=\"4\" paint-order=\"stroke\">{label}</text>",
            at.0, at.1
        );
    }
    if !deadlock.circle {
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">anybody of them</text>",
            middle.0, middle.1
        );
    }
    for (i, party) in deadlock.parties.iter().enumerate() {
        let (x, y) = place(i);
        let _ = writeln!(
            svg,
            "<rect x=\"{:.0}\" y=\"{:.0}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\" fill=\"#eef\" stroke=\"#335\"/><text x=\"{x:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
            x - WIDTH / 2.0,
            y - HEIGHT / 2.0,
            y + 4.0,
            escape(&party.title())
        );
    }
    svg.push_str("</svg>\n");
    svg
}
