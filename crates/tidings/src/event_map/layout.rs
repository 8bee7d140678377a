//! Where the nodes of a picture stand: in rows, so that arrows point down as far as they can.
//!
//! The usual four steps (Sugiyama): arrows that close a cycle are turned round; each node goes to the
//! row below all that lead to it; in the rows, nodes are ordered by the middle of their neighbours, so
//! that few arrows cross; and they are moved sideways towards their neighbours. An arrow over several
//! rows bends in each, at a node without a width. The same picture always looks the same.

/// The distance between two neighbours of a row.
const GAP: f64 = 22.0;
/// How often the rows are gone through, for their order and for their places.
const ROUNDS: usize = 24;

/// A picture that is laid out.
pub(super) struct Layout {
    /// The middle of each node: how far to the right, and in which row.
    pub(super) places: Vec<(f64, usize)>,
    /// The points of each arrow, from its node to its node.
    pub(super) ways: Vec<Vec<(f64, usize)>>,
    pub(super) width: f64,
    pub(super) rows: usize,
}

/// Lays out nodes of these widths.
pub(super) fn lay_out(widths: &[f64], arrows: &[(usize, usize)]) -> Layout {
    let down = without_cycles(widths.len(), arrows);
    let mut rows_of = rows(widths.len(), &down);
    let mut graph = Graph::new(widths, &mut rows_of, &down);
    graph.order();
    graph.place();
    let ways = graph.ways.iter().zip(arrows).zip(&down);
    let ways = ways.map(|((way, arrow), down)| {
        let points = way.iter().map(|node| (graph.x[*node], rows_of[*node]));
        let mut points: Vec<_> = points.collect();
        if arrow != down {
            points.reverse();
        }
        points
    });
    Layout {
        ways: ways.collect(),
        places: (0..widths.len())
            .map(|node| (graph.x[node], rows_of[node]))
            .collect(),
        width: graph.right_edge(),
        rows: graph.rows.len(),
    }
}

/// The arrows, those turned round that lead back.
fn without_cycles(count: usize, arrows: &[(usize, usize)]) -> Vec<(usize, usize)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Never,
        OnTheWay,
        Done,
    }
    let from = |node: usize| (0..arrows.len()).filter(move |arrow| arrows[*arrow].0 == node);
    let has_source = |node: &usize| !arrows.iter().any(|(_, to)| to == node);
    let mut turned = arrows.to_vec();
    let mut seen = vec![Seen::Never; count];
    // Where nothing leads to comes first: there things begin.
    let (mut starts, rest): (Vec<usize>, Vec<usize>) = (0..count).partition(has_source);
    starts.extend(rest);
    for start in starts {
        if seen[start] != Seen::Never {
            continue;
        }
        seen[start] = Seen::OnTheWay;
        let mut way = vec![(start, from(start))];
        while let Some((node, open)) = way.last_mut() {
            let Some(arrow) = open.next() else {
                seen[*node] = Seen::Done;
                way.pop();
                continue;
            };
            let to = arrows[arrow].1;
            match seen[to] {
                Seen::Never => {
                    seen[to] = Seen::OnTheWay;
                    way.push((to, from(to)));
                }
                Seen::OnTheWay => turned[arrow] = (to, arrows[arrow].0),
                Seen::Done => {}
            }
        }
    }
    turned
}

/// The row of each node: below all that lead to it; what nothing leads to, just above what it leads
/// to.
fn rows(count: usize, arrows: &[(usize, usize)]) -> Vec<usize> {
    let mut rows = vec![0; count];
    for _ in 0..count {
        let mut is_done = true;
        for (from, to) in arrows {
            if from != to && rows[*to] <= rows[*from] {
                rows[*to] = rows[*from] + 1;
                is_done = false;
            }
        }
        if is_done {
            break;
        }
    }
    let is_first = |node: &usize| !arrows.iter().any(|(from, to)| to == node && from != to);
    for node in (0..count).filter(is_first) {
        let below = arrows
            .iter()
            .filter(|(from, to)| *from == node && to != from);
        let highest = below.map(|(_, to)| rows[*to]).min();
        rows[node] = highest.map_or(rows[node], |row| row - 1);
    }
    rows
}

struct Graph {
    widths: Vec<f64>,
    /// The nodes of each row, from left to right.
    rows: Vec<Vec<usize>>,
    above: Vec<Vec<usize>>,
    below: Vec<Vec<usize>>,
    ways: Vec<Vec<usize>>,
    x: Vec<f64>,
}

impl Graph {
    /// With nodes where an arrow passes a row.
    fn new(widths: &[f64], rows_of: &mut Vec<usize>, arrows: &[(usize, usize)]) -> Self {
        let mut widths = widths.to_vec();
        let mut ways = Vec::with_capacity(arrows.len());
        for (from, to) in arrows {
            let mut way = vec![*from];
            for row in rows_of[*from] + 1..rows_of[*to] {
                way.push(widths.len());
                widths.push(0.0);
                rows_of.push(row);
            }
            way.push(*to);
            ways.push(way);
        }
        let count = widths.len();
        let (mut above, mut below) = (vec![Vec::new(); count], vec![Vec::new(); count]);
        for way in &ways {
            for pair in way.windows(2).filter(|pair| pair[0] != pair[1]) {
                below[pair[0]].push(pair[1]);
                above[pair[1]].push(pair[0]);
            }
        }
        let last = rows_of.iter().max().map_or(0, |last| last + 1);
        let mut rows = vec![Vec::new(); last];
        for (node, row) in rows_of.iter().enumerate() {
            rows[*row].push(node);
        }
        Self {
            x: vec![0.0; count],
            widths,
            rows,
            above,
            below,
            ways,
        }
    }

    /// Orders the rows, and keeps the order with the fewest crossings.
    fn order(&mut self) {
        let mut best = (self.crossings(), self.rows.clone());
        for round in 0..ROUNDS {
            let is_down = round % 2 == 0;
            let count = self.rows.len();
            for step in 1..count {
                let row = if is_down { step } else { count - 1 - step };
                let fixed = if is_down { row - 1 } else { row + 1 };
                let mut place = vec![0.0; self.widths.len()];
                for (at, node) in self.rows[fixed].iter().enumerate() {
                    place[*node] = at as f64;
                }
                let neighbours = if is_down { &self.above } else { &self.below };
                let mut keyed: Vec<(f64, usize)> = self.rows[row]
                    .iter()
                    .enumerate()
                    .map(|(at, node)| {
                        let of = neighbours[*node].iter().map(|it| place[*it]);
                        (mean(of).unwrap_or(at as f64), *node)
                    })
                    .collect();
                keyed.sort_by(|one, other| one.0.total_cmp(&other.0));
                self.rows[row] = keyed.into_iter().map(|(_, node)| node).collect();
            }
            let crossings = self.crossings();
            if crossings < best.0 {
                best = (crossings, self.rows.clone());
            }
        }
        self.rows = best.1;
    }

    fn crossings(&self) -> usize {
        let mut place = vec![0; self.widths.len()];
        for row in &self.rows {
            for (at, node) in row.iter().enumerate() {
                place[*node] = at;
            }
        }
        let mut crossings = 0;
        for row in &self.rows {
            let pairs = row.iter().flat_map(|node| {
                let place = &place;
                self.below[*node]
                    .iter()
                    .map(move |below| (place[*node], place[*below]))
            });
            let pairs: Vec<_> = pairs.collect();
            for (at, one) in pairs.iter().enumerate() {
                let crosses = |other: &&(usize, usize)| {
                    (one.0 < other.0 && one.1 > other.1) || (one.0 > other.0 && one.1 < other.1)
                };
                crossings += pairs[at + 1..].iter().filter(crosses).count();
            }
        }
        crossings
    }

    /// Puts the nodes of each row beside each other, then moves them towards their neighbours.
    fn place(&mut self) {
        for row in &self.rows {
            let mut x = 0.0;
            for node in row {
                self.x[*node] = x + self.widths[*node] / 2.0;
                x += self.widths[*node] + GAP;
            }
        }
        for round in 0..ROUNDS {
            let is_down = round % 2 == 0;
            let count = self.rows.len();
            for step in 0..count {
                let row = if is_down { step } else { count - 1 - step };
                self.align(row, round + 2 >= ROUNDS);
            }
        }
        let left = |node: usize, x: f64| x - self.widths[node] / 2.0;
        let lefts = self.x.iter().enumerate().map(|(node, x)| left(node, *x));
        let shift = lefts.fold(f64::INFINITY, f64::min);
        if shift.is_finite() {
            self.x.iter_mut().for_each(|x| *x -= shift);
        }
    }

    /// Moves the nodes of a row to the middle of their neighbours, as far as there is room: once from
    /// the left and once from the right, and in between of both.
    fn align(&mut self, row: usize, from_all: bool) {
        let wanted: Vec<f64> = self.rows[row]
            .iter()
            .map(|node| {
                let near = self.above[*node].iter().chain(&self.below[*node]);
                let mean = mean(near.map(|it| self.x[*it]));
                let wanted = mean.unwrap_or(self.x[*node]);
                match from_all {
                    true => wanted,
                    false => f64::midpoint(wanted, self.x[*node]),
                }
            })
            .collect();
        let nodes = &self.rows[row];
        let apart = |at: usize| {
            let (one, other) = (self.widths[nodes[at]], self.widths[nodes[at + 1]]);
            f64::midpoint(one, other) + GAP
        };
        let (mut right, mut left) = (wanted.clone(), wanted);
        for at in 1..nodes.len() {
            right[at] = right[at].max(right[at - 1] + apart(at - 1));
        }
        for at in (1..nodes.len()).rev() {
            left[at - 1] = left[at - 1].min(left[at] - apart(at - 1));
        }
        for (at, node) in self.rows[row].clone().into_iter().enumerate() {
            self.x[node] = f64::midpoint(right[at], left[at]);
        }
    }

    fn right_edge(&self) -> f64 {
        let edges = self
            .x
            .iter()
            .zip(&self.widths)
            .map(|(x, width)| x + width / 2.0);
        edges.fold(0.0, f64::max)
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), it| (sum + it, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_point_down_and_nodes_do_not_overlap() {
        let widths = [80.0, 120.0, 60.0, 90.0, 100.0, 40.0];
        // With a cycle (4 to 0), a long arrow (0 to 4), and a node that leads to itself.
        let arrows = [
            (0, 1),
            (0, 2),
            (1, 3),
            (2, 3),
            (3, 4),
            (0, 4),
            (4, 0),
            (5, 5),
        ];
        let layout = lay_out(&widths, &arrows);
        for (arrow, (from, to)) in arrows.iter().enumerate() {
            let (above, below) = (layout.places[*from].1, layout.places[*to].1);
            let is_back = *from == 4;
            assert!(from == to || is_back == (above > below), "{from} to {to}");
            let way = &layout.ways[arrow];
            assert_eq!(
                (way[0], way[way.len() - 1]),
                (layout.places[*from], layout.places[*to])
            );
        }
        for one in 0..widths.len() {
            for other in one + 1..widths.len() {
                let ((x, row), (to, below)) = (layout.places[one], layout.places[other]);
                let apart = f64::midpoint(widths[one], widths[other]);
                assert!(row != below || (x - to).abs() >= apart, "{one} and {other}");
            }
        }
        assert_eq!(layout.rows, 4);
    }
}
