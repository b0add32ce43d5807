//! Attention over relative positions, and what goes with it: the appended table and neighbouring rows.

use super::*;

#[test]
fn relative_attention_of_every_kind() {
    // (n_heads, head_size, seq, table_rows, buckets, max_distance): tables longer and shorter than the sequence.
    for (n_heads, head_size, seq, table_rows, buckets, max_distance) in
        [(2, 8, 33, 16, 8, 24), (3, 5, 9, 64, 32, 128), (1, 16, 20, 12, 0, 6)]
    {
        let positions = RelativePositions::new(table_rows, buckets, max_distance, seq + 3);
        for (keys, queries) in [(true, true), (true, false), (false, true)] {
            for lengths in [vec![], vec![seq, 1, seq / 2 + 1]] {
                let scale = 0.8 / (head_size as f32).sqrt();
                let shape = AttentionShape {
                    batch: 3,
                    seq,
                    n_heads,
                    n_kv_heads: n_heads,
                    head_size,
                    causal: false,
                    scale,
                    lengths,
                };
                let width = n_heads * head_size;
                let rows = |table: bool| 3 * seq + if table { table_rows } else { 0 };
                let inputs = [
                    variable("q", &[rows(queries), width]),
                    variable("k", &[rows(keys), width]),
                    variable("v", &[3 * seq, width]),
                ];
                check_operator(
                    &format!("relative attention {shape:?}, tables {keys} {queries}"),
                    &inputs,
                    |t| relative_attention(&t[0], &t[1], &t[2], &shape, &positions),
                    |t| relative_attention_composed(&t[0], &t[1], &t[2], &shape, &positions),
                );
            }
        }
    }
}

/// The definition, number by number.
#[test]
fn a_score_is_content_and_two_positions() {
    let (seq, head_size, table_rows) = (7, 4, 8);
    let positions = RelativePositions::new(table_rows, 4, 6, seq);
    let shape = AttentionShape {
        batch: 1,
        seq,
        n_heads: 2,
        n_kv_heads: 2,
        head_size,
        causal: false,
        scale: 0.3,
        lengths: vec![5],
    };
    let [q, k, v] = [("q", 8), ("k", 8), ("v", 0)].map(|(name, table)| random(name, &[seq + table, 8]));
    let found = values(&relative_attention(&q, &k, &v, &shape, &positions).unwrap());
    let [q, k, v] = [q, k, v].map(|x| x.to_vec2::<f32>().unwrap());
    // With four buckets and six as the longest distance: 2 is the middle, ln(3 / 2) / ln(5 / 2) = 0.44, one bucket further.
    let place = |i: usize, j: usize| match i as i64 - j as i64 {
        d @ -2..=2 => (d + 4) as usize,
        3..=5 => 7,
        -5..=-3 => 1,
        far => {
            if far > 0 {
                7
            } else {
                0
            }
        }
    };
    for (i, head) in (0..seq).flat_map(|i| [(i, 0), (i, 1)]) {
        let part = head * head_size..(head + 1) * head_size;
        let dot = |a: &[f32], b: &[f32]| {
            let (a, b) = (&a[part.clone()], &b[part.clone()]);
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let weights: Vec<f64> = (0..5)
            .map(|j| {
                let place = seq + place(i, j);
                let score = dot(&q[i], &k[j]) + dot(&q[i], &k[place]) + dot(&k[j], &q[place]);
                (score * f64::from(0.3f32)).exp()
            })
            .collect();
        let sum: f64 = weights.iter().sum();
        for c in part.clone() {
            let expected: f64 = weights.iter().zip(&v).map(|(w, v)| w * f64::from(v[c])).sum::<f64>() / sum;
            let found = f64::from(found[i * 8 + c]);
            assert!(
                (found - expected).abs() < 1e-5,
                "row {i}, column {c}: expected {expected}, found {found}"
            );
        }
    }
}

#[test]
fn far_distances_share_buckets() {
    let bucket = |distance| bucket(distance, 8, 24);
    assert_eq!([0, 1, -1, 4, -4].map(bucket), [0, 1, -1, 4, -4]);
    // ln(5 / 4) / ln(23 / 4) * 3 = 0.38, ln(8 / 4) / ln(23 / 4) * 3 = 1.19, and 3 at the end.
    assert_eq!([5, 7, 8, -8, 12, 13, 23, -23].map(bucket), [5, 5, 6, -6, 6, 7, 7, -7]);
    assert_eq!(super::bucket(-1000, 0, 0), -1000);
}

#[test]
fn relative_attention_refuses_what_does_not_fit() {
    let shape = AttentionShape {
        batch: 2,
        seq: 3,
        n_heads: 1,
        n_kv_heads: 1,
        head_size: 4,
        causal: false,
        scale: 0.5,
        lengths: vec![],
    };
    let run = |rows: usize, max_rows: usize, causal: bool| {
        let shape = AttentionShape { causal, ..shape.clone() };
        let positions = RelativePositions::new(6, 0, 0, max_rows);
        let (q, v) = (random("q", &[rows, 4]), random("v", &[6, 4]));
        relative_attention(&q, &q, &v, &shape, &positions).unwrap_err().to_string()
    };
    assert_eq!(run(13, 9, false), "relative_attention: the rows of q is 13, expected 6, or 12 with a table");
    assert_eq!(run(6, 9, false), "relative_attention: the number of tables is 0, expected 1 or 2");
    assert_eq!(run(12, 2, false), "relative_attention: the sequence length is 3, expected at most 2");
    assert!(run(12, 9, true).contains("no causal mask"));
}

#[test]
fn appended_tables() {
    for table in [random("table", &[4, 5]), variable("table", &[4, 5])] {
        check_operator(
            "append_table",
            &[variable("x", &[6, 5]), table.clone()],
            |t| append_table(&t[0], &t[1], &[6]),
            |t| Ok(Tensor::cat(&[&t[0], &t[1]], 0)?),
        );
        // Behind each of three batches.
        check_operator(
            "append_table to batches",
            &[variable("x", &[6, 5]), table],
            |t| append_table(&t[0], &t[1], &[1, 3, 2]),
            |t| {
                let [a, b, c] = [(0, 1), (1, 3), (4, 2)].map(|(first, rows)| t[0].narrow(0, first, rows));
                Ok(Tensor::cat(&[&a?, &t[1], &b?, &t[1], &c?, &t[1]], 0)?)
            },
        );
    }
    // Two readers: the second adds to the gradient of the first.
    let (x, table) = (variable("x", &[6, 5]), random("table", &[4, 5]));
    check_operator(
        "append_table",
        &[x],
        |t| add(&append_table(&t[0], &table, &[6])?, &append_table(&t[0], &table, &[6])?),
        |t| Ok((Tensor::cat(&[&t[0], &table], 0)? * 2.0)?),
    );
    let x = random("x", &[6, 5]);
    let error = append_table(&x, &table, &[1, 4]).unwrap_err().to_string();
    assert_eq!(error, "append_table: the rows of the batches is 5, expected 6");
}

#[test]
fn rows_of_parts_behind_one_another() {
    let parts = [variable("a", &[2, 5]), variable("b", &[1, 5]), random("c", &[3, 5])];
    check_operator("concat_rows", &parts, |t| concat_rows(&t[..3]), |t| Ok(Tensor::cat(&t[..3], 0)?));
    // A part that comes twice, and one that another operator reads too.
    check_operator(
        "concat_rows",
        &[variable("a", &[2, 5]), variable("b", &[4, 5])],
        |t| add(&concat_rows(&[t[0].clone(), t[0].clone()])?, &t[1]),
        |t| Ok((Tensor::cat(&[&t[0], &t[0]], 0)? + &t[1])?),
    );
    let wide = random("wide", &[2, 6]);
    assert!(concat_rows(&[random("a", &[2, 5]), wide]).is_err() && concat_rows(&[]).is_err());
}

#[test]
fn neighbours_stop_at_the_ends_of_a_sequence() {
    let (seq, width) = (5, 3);
    for (reach, lengths) in [(1, [5, 1, 4]), (3, [2, 5, 5]), (0, [5, 5, 3])] {
        check_operator(
            "neighbours",
            &[variable("x", &[3 * seq, width])],
            |t| neighbours(&t[0], seq, &lengths, reach),
            |t| neighbours_composed(&t[0], seq, &lengths, reach),
        );
    }
    let x = random("x", &[2 * seq, width]);
    let rows: Vec<Vec<f32>> = x.to_vec2().unwrap();
    let y: Vec<Vec<f32>> = neighbours(&x, seq, &[5, 4], 1).unwrap().to_vec2().unwrap();
    assert_eq!(y[0], [&[0.0; 3][..], &rows[0], &rows[1]].concat());
    assert_eq!(y[6], [&rows[5][..], &rows[6], &rows[7]].concat());
    assert_eq!(y[8], [&rows[7][..], &rows[8], &[0.0; 3]].concat(), "row 9 is padding");
}
