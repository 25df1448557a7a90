//! Where the boxes of a picture are: in columns, each client to the left of what it calls, as far as calls make no circle.
//!
//! Not by a crate: those that exist take a minute for 60 boxes with 300 arrows, and have no deadline. This one takes time in proportion
//! to boxes and arrows.

use std::cmp::Reverse;

/// How often the boxes of all columns are ordered by their neighbours. More changes little.
const SWEEPS: usize = 8;

/// The boxes of each column, from top to bottom. Edges are from a box to another one.
pub fn columns(boxes: usize, edges: &[(usize, usize)]) -> Vec<Vec<usize>> {
    let mut next = vec![Vec::new(); boxes];
    let mut neighbours = vec![Vec::new(); boxes];
    let mut called = vec![0_usize; boxes];
    for &(from, to) in edges.iter().filter(|(from, to)| from != to) {
        next[from].push(to);
        called[to] += 1;
        neighbours[from].push(to);
        neighbours[to].push(from);
    }
    let mut columns: Vec<Vec<usize>> = Vec::new();
    for (at, column) in ranks(&next, &called).into_iter().enumerate() {
        if columns.len() <= column {
            columns.resize(column + 1, Vec::new());
        }
        columns[column].push(at);
    }
    for _ in 0..SWEEPS {
        order(&mut columns, &neighbours, boxes);
    }
    columns
}

/// The column of each box: one more than that of any that calls it. An edge that closes a circle does not count.
fn ranks(next: &[Vec<usize>], called: &[usize]) -> Vec<usize> {
    let mut starts: Vec<usize> = (0..next.len()).collect();
    // What nothing calls comes first, and what calls more than it is called.
    starts.sort_by_key(|at| (called[*at] > 0, Reverse(next[*at].len()), called[*at]));
    // Depth first: a box is finished after all that it calls.
    let mut is_met = vec![false; next.len()];
    let mut finished = Vec::new();
    for start in starts {
        let mut path = Vec::new();
        if !std::mem::replace(&mut is_met[start], true) {
            path.push((start, next[start].iter()));
        }
        while let Some((at, rest)) = path.last_mut() {
            if let Some(&to) = rest.find(|to| !is_met[**to]) {
                is_met[to] = true;
                path.push((to, next[to].iter()));
            } else {
                finished.push(*at);
                path.pop();
            }
        }
    }
    finished.reverse();
    let mut place = vec![0; next.len()];
    for (number, at) in finished.iter().enumerate() {
        place[*at] = number;
    }
    let mut ranks = vec![0; next.len()];
    for from in finished {
        for &to in next[from].iter().filter(|to| place[**to] > place[from]) {
            ranks[to] = ranks[to].max(ranks[from] + 1);
        }
    }
    ranks
}

/// Orders each column by the mean place of its boxes' neighbours, so that fewer arrows cross.
fn order(columns: &mut [Vec<usize>], neighbours: &[Vec<usize>], boxes: usize) {
    // In thousandths of the height.
    let mut places = vec![0; boxes];
    for column in columns.iter() {
        place(&mut places, column);
    }
    for column in columns {
        column.sort_by_key(|at| {
            let sum: usize = neighbours[*at].iter().map(|other| places[*other]).sum();
            sum.checked_div(neighbours[*at].len()).unwrap_or(places[*at])
        });
        place(&mut places, column);
    }
}

fn place(places: &mut [usize], column: &[usize]) {
    for (number, at) in column.iter().enumerate() {
        places[*at] = (2 * number + 1) * 500 / column.len();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn clients_are_left_of_servers() {
        assert_eq!(columns(4, &[(3, 2), (2, 1), (3, 1), (1, 1)]), [vec![0, 3], vec![2], vec![1]]);
        // A circle: it begins with the one that something else calls.
        assert_eq!(columns(3, &[(0, 1), (1, 2), (2, 1)]), [vec![0], vec![1], vec![2]]);
        assert_eq!(columns(2, &[(0, 1), (1, 0)]), [vec![0], vec![1]]);
        assert_eq!(columns(0, &[]), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn neighbours_are_at_the_same_height() {
        // Without an order, both arrows would cross.
        assert_eq!(columns(4, &[(0, 3), (1, 2)]), [vec![1, 0], vec![2, 3]]);
    }

    #[test]
    fn all_calls_of_sixty_boxes_take_no_time() {
        let edges: Vec<(usize, usize)> = (0..60).flat_map(|from| (0..60).map(move |to| (from, to))).collect();
        let start = Instant::now();
        let columns = columns(60, &edges);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert_eq!(columns.iter().flatten().count(), 60);
    }
}
