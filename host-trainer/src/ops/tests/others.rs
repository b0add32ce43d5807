//! Norms, positions, attention, elementwise operators, moved rows and the loss.

use super::*;

on_each_device!(
    norms,
    trained_norms,
    rotary_positions,
    attention_of_every_kind,
    attention_with_frozen_inputs_and_large_scores,
    elementwise,
    moved_rows,
    embedding_looks_up,
    cross_entropy_is_the_weighted_mean,
    cross_entropy_refuses_what_has_no_mean,
);

fn norms() {
    // 5,000 rows of 7 are more than one piece.
    for rows in [6, 5000] {
        let x = variable("x", &[rows, 7]);
        let (weight, bias) = (random("weight", &[7]), random("bias", &[7]));
        check_operator(
            "rms_norm",
            std::slice::from_ref(&x),
            |t| rms_norm(&t[0], &weight, 1e-5),
            |t| rms_norm_composed(&t[0], &weight, 1e-5),
        );
        check_operator(
            "layer_norm",
            std::slice::from_ref(&x),
            |t| layer_norm(&t[0], &weight, &bias, 1e-5),
            |t| layer_norm_composed(&t[0], &weight, &bias, 1e-5),
        );
        let trained = variable("bias", &[7]);
        let [plain, with_gradient] =
            [&bias, &trained].map(|bias| values(&layer_norm(&x, &weight, bias, 1e-5).unwrap()));
        // The same numbers, whether they are trained or not.
        assert!(plain == with_gradient || !device().is_cpu());
        check_operator(
            "layer_norm with a trained bias",
            &[x, trained],
            |t| layer_norm(&t[0], &weight, &t[1], 1e-5),
            |t| layer_norm_composed(&t[0], &weight, &t[1], 1e-5),
        );
    }
}

fn trained_norms() {
    // The last of several pieces is not whole.
    for rows in [6, 5000] {
        for x in [variable("x", &[rows, 7]), random("x", &[rows, 7])] {
            let inputs = [x, variable("weight", &[7]), variable("bias", &[7])];
            check_operator(
                "rms_norm",
                &inputs[..2],
                |t| rms_norm(&t[0], &t[1], 1e-5),
                |t| rms_norm_composed(&t[0], &t[1], 1e-5),
            );
            check_operator(
                "layer_norm",
                &inputs,
                |t| layer_norm(&t[0], &t[1], &t[2], 1e-5),
                |t| layer_norm_composed(&t[0], &t[1], &t[2], 1e-5),
            );
        }
    }
    let (x, weight, bias) = (random("x", &[2, 7]), variable("weight", &[7]), random("bias", &[7]));
    let error = layer_norm(&x, &weight, &bias, 1e-5).unwrap_err().to_string();
    assert_eq!(error, "layer_norm: the bias is frozen, expected trained, as the weight is");
}

fn rotary_positions() {
    let positions: Vec<u32> = (0..30).map(|row| row % 11).collect();
    let table = RopeTable::new(&positions, &[1.0, 0.3, 0.01], &device()).unwrap();
    check_operator(
        "rope",
        &[variable("x", &[30, 24])],
        |t| rope(&t[0], &table),
        |t| rope_composed(&t[0], &table),
    );
    // llama2.c's loop, for row 5 (position 5), head 1, pair 2.
    let x = random("x", &[30, 24]);
    let (found, x) = (values(&rope(&x, &table).unwrap()), values(&x));
    let (sin, cos) = (5.0f32 * 0.01).sin_cos();
    let at = 5 * 24 + 6 + 4;
    assert_eq!(found[at], x[at] * cos - x[at + 1] * sin);
    assert_eq!(found[at + 1], x[at] * sin + x[at + 1] * cos);
}

fn attention_of_every_kind() {
    // (n_heads, n_kv_heads, head_size, seq): grouped or not, sizes that are no multiple of a vector.
    for (n_heads, n_kv_heads, head_size, seq) in [(4, 2, 8, 33), (2, 2, 3, 9), (6, 1, 16, 20), (1, 1, 64, 5)]
    {
        for causal in [false, true] {
            for lengths in [vec![], vec![seq, 1, seq / 2 + 1]] {
                let scale = 1.3 / (head_size as f32).sqrt();
                let shape =
                    AttentionShape { batch: 3, seq, n_heads, n_kv_heads, head_size, causal, scale, lengths };
                let inputs = [
                    variable("q", &[3 * seq, n_heads * head_size]),
                    variable("k", &[3 * seq, n_kv_heads * head_size]),
                    variable("v", &[3 * seq, n_kv_heads * head_size]),
                ];
                check_operator(
                    &format!("attention {shape:?}"),
                    &inputs,
                    |t| attention(&t[0], &t[1], &t[2], &shape),
                    |t| attention_composed(&t[0], &t[1], &t[2], &shape),
                );
            }
        }
    }
}

fn attention_with_frozen_inputs_and_large_scores() {
    let shape = AttentionShape {
        batch: 1,
        seq: 12,
        n_heads: 2,
        n_kv_heads: 1,
        head_size: 4,
        causal: true,
        scale: 30.0,
        lengths: vec![],
    };
    for trained in 0..3 {
        let pick = |i: usize, name: &str, width| {
            if i == trained { variable(name, &[12, width]) } else { random(name, &[12, width]) }
        };
        let (q, k, v) = (pick(0, "q", 8), pick(1, "k", 4), pick(2, "v", 4));
        let y = attention(&q, &k, &v, &shape).unwrap();
        let oracle = attention_composed(&q, &k, &v, &shape).unwrap();
        assert_close("attention", &y, &oracle, 1e-4);
        let (grads, expected) =
            (candle_loss(&y).backward().unwrap(), candle_loss(&oracle).backward().unwrap());
        for (i, t) in [&q, &k, &v].into_iter().enumerate() {
            assert_eq!(grads.get(t).is_some(), i == trained);
        }
        let t = [&q, &k, &v][trained];
        assert_close("gradient", grad(&grads, t), grad(&expected, t), 1e-4);
    }
}

fn elementwise() {
    let (a, b) = (variable("a", &[3000, 7]), variable("b", &[3000, 7]));
    check_operator("silu", std::slice::from_ref(&a), |t| silu(&t[0]), |t| silu_composed(&t[0]));
    check_operator("gelu", std::slice::from_ref(&a), |t| gelu(&t[0]), |t| gelu_composed(&t[0]));
    check_operator("gelu_erf", std::slice::from_ref(&a), |t| gelu_erf(&t[0]), |t| gelu_erf_composed(&t[0]));
    check_operator("tanh", std::slice::from_ref(&a), |t| tanh(&t[0]), |t| tanh_composed(&t[0]));
    let two = [a, b];
    check_operator("add", &two, |t| add(&t[0], &t[1]), |t| Ok(t[0].add(&t[1])?));
    check_operator("mul", &two, |t| mul(&t[0], &t[1]), |t| Ok(t[0].mul(&t[1])?));
    check_operator("silu_mul", &two, |t| silu_mul(&t[0], &t[1]), |t| Ok(silu_composed(&t[0])?.mul(&t[1])?));
    let both = [variable("a", &[3000, 7]), variable("bias", &[7])];
    check_operator("add_bias", &both, |t| add_bias(&t[0], &t[1]), |t| Ok(t[0].broadcast_add(&t[1])?));
}

#[test]
fn elementary_functions_are_exact_to_a_few_units() {
    for i in -87_000..=87_900 {
        let x = i as f32 * 1e-3;
        let exact = f64::from(x).exp();
        let found = f64::from(math::exp(x));
        let bound = 2.5e-7 + 2.8e-9 * f64::from(x.abs());
        assert!((found - exact).abs() <= bound * exact, "exp({x}) = {found}, expected {exact}");
        assert!((f64::from(math::tanh(x)) - f64::from(x).tanh()).abs() < 2e-7, "tanh({x})");
        assert!(
            (f64::from(math::sigmoid(x)) - 1.0 / (1.0 + (-f64::from(x)).exp())).abs() < 2e-7,
            "sigmoid({x})"
        );
    }
    assert_eq!(math::exp(0.0), 1.0);
    assert!(math::exp(f32::NEG_INFINITY) < 2e-38 && math::exp(-200.0) < 2e-38);
    assert!(math::exp(500.0).is_finite() && math::exp(f32::NAN).is_nan());
}

#[test]
fn own_logarithm_is_the_logarithm() {
    let mut rng = Rng::new(9, "ln");
    for _ in 0..100_000 {
        // All normal positive numbers, then those near 1.
        for x in [f32::from_bits(rng.below(0x7f00_0000) as u32 + 0x0080_0000), rng.uniform_in(0.5, 2.0)] {
            let exact = f64::from(x).ln();
            let error = (f64::from(math::ln(x)) - exact).abs();
            assert!(error <= 2e-7 * exact.abs().max(1.0), "ln {x}: error {error}");
        }
    }
    assert_eq!(math::ln(1.0), 0.0);
}

fn moved_rows() {
    let (batch, seq, width) = (4, 5, 6);
    let x = variable("x", &[batch * seq, width]);
    let table = random("table", &[seq + 2, width]);
    check_operator(
        "add_positions",
        std::slice::from_ref(&x),
        |t| add_positions(&t[0], &table, seq),
        |t| {
            let x = t[0].reshape((batch, seq, width))?.broadcast_add(&table.narrow(0, 0, seq)?)?;
            Ok(x.reshape((batch * seq, width))?)
        },
    );
    for x in [x.clone(), random("x", &[batch * seq, width])] {
        check_operator(
            "add_positions",
            &[x, variable("table", &[seq + 2, width])],
            |t| add_positions(&t[0], &t[1], seq),
            |t| {
                let x = t[0].reshape((batch, seq, width))?.broadcast_add(&t[1].narrow(0, 0, seq)?)?;
                Ok(x.reshape((batch * seq, width))?)
            },
        );
    }
    for token in [random("token", &[width]), variable("token", &[width])] {
        check_operator(
            "prepend_token",
            &[x.clone(), token],
            |t| prepend_token(&t[0], &t[1], seq),
            |t| {
                let token = t[1].reshape((1, 1, width))?.broadcast_as((batch, 1, width))?;
                let x = t[0].reshape((batch, seq, width))?;
                Ok(Tensor::cat(&[token, x], 1)?.reshape((batch * (seq + 1), width))?)
            },
        );
    }
    let rows = [19u32, 0, 7, 7, 3];
    check_operator(
        "select_rows",
        std::slice::from_ref(&x),
        |t| select_rows(&t[0], &rows),
        |t| Ok(t[0].index_select(&Tensor::new(&rows, &device())?, 0)?),
    );
    let lengths = [5usize, 1, 3, 4];
    check_operator(
        "mean_pool",
        &[x],
        |t| mean_pool(&t[0], seq, &lengths),
        |t| mean_pool_composed(&t[0], seq, &lengths),
    );
}

fn embedding_looks_up() {
    let table = variable("table", &[9, 4]);
    let ids = Tensor::new(&[3u32, 8, 3, 0], &device()).unwrap();
    check_operator(
        "embedding",
        std::slice::from_ref(&table),
        |t| embedding(&t[0], &ids),
        |t| Ok(t[0].index_select(&ids, 0)?),
    );
    let y = embedding(&table.detach(), &ids).unwrap();
    assert!(!y.track_op(), "a frozen table costs nothing in the backward");
    let (y, table_values) = (values(&y), values(&table));
    for (row, id) in [3, 8, 3, 0].into_iter().enumerate() {
        assert_eq!(y[row * 4..][..4], table_values[id * 4..][..4]);
    }
    let ids = Tensor::new(&[9u32], &device()).unwrap();
    let error = embedding(&table, &ids).unwrap_err().to_string();
    assert_eq!(error, "embedding: an id is 9, expected below 9");
}

fn cross_entropy_is_the_weighted_mean() {
    let (rows, classes) = (3000, 11);
    let logits = Var::from_tensor(&(random("logits", &[rows, classes]) * 4.0).unwrap()).unwrap().into_inner();
    let mut rng = Rng::new(2, "targets");
    // Rows without a weight may have a target that is no class, as padding has.
    let weights: Vec<f32> = (0..rows).map(|_| [0.0, 1.0, 0.25][rng.below(3) as usize]).collect();
    let targets: Vec<u32> =
        weights.iter().map(|&w| if w == 0.0 { u32::MAX } else { rng.below(classes as u64) as u32 }).collect();
    let targets = Tensor::from_vec(targets, rows, &device()).unwrap();
    let weights = Tensor::from_vec(weights, rows, &device()).unwrap();
    let fused = cross_entropy(&logits, &targets, &weights).unwrap();
    let oracle = cross_entropy_composed(&logits, &targets, &weights).unwrap();
    assert_close("cross_entropy", &fused, &oracle, 1e-6);
    let expected = oracle.backward().unwrap();
    let own = differentiate(|| cross_entropy(&logits, &targets, &weights)).unwrap();
    assert!(own.own_walk);
    assert_close("gradient", grad(&fused.backward().unwrap(), &logits), grad(&expected, &logits), TOLERANCE);
    assert_close("gradient", grad(&own.grads, &logits), grad(&expected, &logits), TOLERANCE);
    // Each row of the gradient sums to 0.
    for row in values(grad(&own.grads, &logits)).chunks_exact(classes) {
        assert!(row.iter().sum::<f32>().abs() < 1e-8);
    }
}

fn cross_entropy_refuses_what_has_no_mean() {
    let logits = random("logits", &[2, 3]);
    let run = |targets: [u32; 2], weights: [f32; 2]| {
        let targets = Tensor::new(&targets, &device()).unwrap();
        let weights = Tensor::new(&weights, &device()).unwrap();
        cross_entropy(&logits, &targets, &weights).unwrap_err().to_string()
    };
    assert_eq!(run([0, 1], [0.0, 0.0]), "cross_entropy: the sum of the weights is 0, expected above 0");
    assert_eq!(run([0, 3], [1.0, 1.0]), "cross_entropy: a target is 3, expected below 3");
    assert_eq!(run([0, 1], [1.0, -1.0]), "cross_entropy: a weight is -1, expected finite and not negative");
}
