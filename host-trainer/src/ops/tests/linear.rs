//! Linear layers.

use super::super::gemm::counted;
use super::*;

on_each_device!(
    plain_and_frozen,
    frozen_linear_ignores_variables,
    lora_with_every_set_of_trained_inputs,
    groups_with_every_set_of_trained_inputs,
    lora_never_forms_the_gradient_of_the_frozen_weight,
    a_zero_b_gives_the_base_output_and_a_gradient_for_b_alone,
    gradients_add_up_where_a_value_is_used_twice,
    other_operators_in_between_fall_back_to_candle,
    refuses_shapes_with_both_in_the_message,
    a_loss_of_more_than_one_element_is_refused,
);

// More rows than one piece (256) with a ragged end, so that partial sums are really combined; alpha / rank is not 1.
const ROWS: usize = 300;
const INNER: usize = 13;
const OUT: usize = 10;
const RANK: usize = 3;
const SCALING: f32 = 16.0 / RANK as f32;

fn factors<'a>(a: &'a Tensor, b: &'a Tensor, dropout_mask: Option<&'a Tensor>) -> LoraFactors<'a> {
    LoraFactors { a, b, scaling: SCALING, dropout_mask }
}

fn mask() -> Tensor {
    let mut rng = Rng::new(1, "mask");
    let values: Vec<f32> =
        (0..ROWS * INNER).map(|_| if rng.uniform() < 0.3 { 0.0 } else { 1.0 / 0.7 }).collect();
    Tensor::from_vec(values, (ROWS, INNER), &device()).unwrap()
}

fn plain_and_frozen() {
    let x = variable("x", &[ROWS, INNER]);
    let bias = random("bias", &[OUT]);
    for w in [variable("w", &[OUT, INNER]), random("w", &[OUT, INNER])] {
        check_operator(
            "linear",
            &[x.clone(), w.clone(), bias.clone()],
            |t| linear(&t[0], &t[1], Some(&t[2])),
            |t| linear_composed(&t[0], &t[1], Some(&t[2])),
        );
    }
    check_operator(
        "linear without bias",
        &[random("x", &[ROWS, INNER]), variable("w", &[OUT, INNER])],
        |t| linear(&t[0], &t[1], None),
        |t| linear_composed(&t[0], &t[1], None),
    );
    let all = [x, variable("w", &[OUT, INNER]), variable("bias", &[OUT])];
    check_operator(
        "linear, all trained",
        &all,
        |t| linear(&t[0], &t[1], Some(&t[2])),
        |t| linear_composed(&t[0], &t[1], Some(&t[2])),
    );
}

fn frozen_linear_ignores_variables() {
    let (x, w, bias) = (variable("x", &[4, 3]), variable("w", &[2, 3]), variable("bias", &[2]));
    let grads = candle_loss(&frozen_linear(&x, &w, Some(&bias)).unwrap()).backward().unwrap();
    assert!(grads.get(&x).is_some());
    assert!(grads.get(&w).is_none() && grads.get(&bias).is_none());
}

fn lora_with_every_set_of_trained_inputs() {
    let (w0, mask) = (random("w0", &[OUT, INNER]), mask());
    for set in 1..16u32 {
        let pick = |bit: u32, name: &str, shape: &[usize]| {
            if set & (1 << bit) != 0 { variable(name, shape) } else { random(name, shape) }
        };
        let inputs = [
            pick(0, "x", &[ROWS, INNER]),
            pick(1, "a", &[RANK, INNER]),
            pick(2, "b", &[OUT, RANK]),
            pick(3, "bias", &[OUT]),
        ];
        for mask in [None, Some(&mask)] {
            check_operator(
                &format!("lora_linear, set {set:04b}, dropout {}", mask.is_some()),
                &inputs,
                |t| lora_linear(&t[0], &w0, Some(&t[3]), &factors(&t[1], &t[2], mask)),
                |t| lora_linear_composed(&t[0], &w0, Some(&t[3]), &factors(&t[1], &t[2], mask)),
            );
        }
    }
}

/// Rows and rank of three groups with factors and two without, and which of them drop inputs.
const GROUPS: [(usize, usize, bool); 5] =
    [(100, 3, true), (7, 0, false), (97, 8, false), (90, 1, false), (6, 0, false)];

/// The groups with their first row and the sum of the ranks before them.
fn grouped() -> Vec<(LoraGroup<'static>, bool, usize, usize)> {
    let (mut row, mut first) = (0, 0);
    GROUPS
        .map(|(rows, rank, dropout)| {
            let scaling = 16.0 / (rank + 1) as f32;
            let group = (LoraGroup { rows, rank, scaling, dropout_mask: None }, dropout, row, first);
            (row, first) = (row + rows, first + rank);
            group
        })
        .to_vec()
}

fn groups_with_every_set_of_trained_inputs() {
    let (w0, mask) = (random("w0", &[OUT, INNER]), mask());
    let masks: Vec<Tensor> = grouped()
        .iter()
        .map(|(group, _, row, _)| mask.narrow(0, *row, group.rows).unwrap().contiguous().unwrap())
        .collect();
    let groups: Vec<LoraGroup> = grouped()
        .into_iter()
        .zip(&masks)
        .map(|((group, dropout, ..), mask)| LoraGroup { dropout_mask: dropout.then_some(mask), ..group })
        .collect();
    for set in 1..16u32 {
        let pick = |bit: u32, name: &str, shape: &[usize]| {
            if set & (1 << bit) != 0 { variable(name, shape) } else { random(name, shape) }
        };
        let inputs = [
            pick(0, "x", &[ROWS, INNER]),
            pick(1, "a", &[12, INNER]),
            pick(2, "b", &[OUT * 12]),
            pick(3, "bias", &[OUT]),
        ];
        let stacked = |t: &[Tensor]| (t[1].clone(), t[2].clone());
        check_operator(
            &format!("lora_linear_groups, set {set:04b}"),
            &inputs,
            |t| {
                let (a, b) = stacked(t);
                let lora = StackedFactors { a: &a, b: &b, groups: &groups };
                lora_linear_groups(&t[0], &w0, Some(&t[3]), &lora)
            },
            |t| {
                let (a, b) = stacked(t);
                let lora = StackedFactors { a: &a, b: &b, groups: &groups };
                lora_linear_groups_composed(&t[0], &w0, Some(&t[3]), &lora)
            },
        );
    }
}

/// Forward and backward of a group are those of the operator on its rows alone, bit for bit.
#[test]
fn a_group_has_the_bits_that_it_has_alone() {
    let (w0, mask, bias) = (random("w0", &[OUT, INNER]), mask(), random("bias", &[OUT]));
    let (x, a, b) = (variable("x", &[ROWS, INNER]), variable("a", &[12, INNER]), variable("b", &[OUT * 12]));
    let rows = |t: &Tensor, first: usize, count: usize| t.narrow(0, first, count).unwrap().detach();
    let masks: Vec<Tensor> =
        grouped().iter().map(|(group, _, row, _)| rows(&mask, *row, group.rows)).collect();
    let groups: Vec<LoraGroup> = grouped()
        .into_iter()
        .zip(&masks)
        .map(|((group, dropout, ..), mask)| LoraGroup { dropout_mask: dropout.then_some(mask), ..group })
        .collect();
    let weights = random("loss", &[ROWS, OUT]);
    let total = |y: &Tensor, weights: &Tensor| y.mul(weights).unwrap().sum_all().unwrap();
    let all = lora_linear_groups(&x, &w0, Some(&bias), &StackedFactors { a: &a, b: &b, groups: &groups });
    let all = all.unwrap();
    let together = total(&all, &weights).backward().unwrap();
    for ((_, _, row, first), group) in grouped().iter().zip(&groups) {
        let own = |t: &Tensor| candle_core::Var::from_tensor(&t.copy().unwrap()).unwrap().into_inner();
        let own_x = own(&rows(&x, *row, group.rows));
        let own_a = own(&rows(&a, *first, group.rank));
        let own_b = own(&rows(&b, OUT * first, OUT * group.rank).reshape((OUT, group.rank)).unwrap());
        let y = if group.rank == 0 {
            frozen_linear(&own_x, &w0, Some(&bias))
        } else {
            let LoraGroup { scaling, dropout_mask, .. } = *group;
            lora_linear(
                &own_x,
                &w0,
                Some(&bias),
                &LoraFactors { a: &own_a, b: &own_b, scaling, dropout_mask },
            )
        };
        let y = y.unwrap();
        assert_eq!(bits(&rows(&all, *row, group.rows)), bits(&y), "forward of {group:?}");
        let alone = total(&y, &rows(&weights, *row, group.rows)).backward().unwrap();
        let found = rows(grad(&together, &x), *row, group.rows);
        assert_eq!(bits(&found), bits(grad(&alone, &own_x)), "dx of {group:?}");
        if group.rank > 0 {
            let found = rows(grad(&together, &a), *first, group.rank);
            assert_eq!(bits(&found), bits(grad(&alone, &own_a)), "da of {group:?}");
            let found = rows(grad(&together, &b), OUT * first, OUT * group.rank);
            assert_eq!(bits(&found), bits(grad(&alone, &own_b)), "db of {group:?}");
        }
    }
}

fn lora_never_forms_the_gradient_of_the_frozen_weight() {
    // Even a weight that is a variable is frozen here: neither way to differentiate may store anything for it.
    let (x, w0) = (variable("x", &[ROWS, INNER]), variable("w0", &[OUT, INNER]));
    let (a, b) = (variable("a", &[RANK, INNER]), variable("b", &[OUT, RANK]));
    let run = || lora_linear(&x, &w0, None, &factors(&a, &b, None));
    let by_candle = candle_loss(&run().unwrap()).backward().unwrap();
    let own = differentiate(|| own_loss(&run()?)).unwrap();
    assert!(own.own_walk);
    for grads in [&by_candle, &own.grads] {
        assert!(grads.get(&w0).is_none());
        assert!([&x, &a, &b].into_iter().all(|t| grads.get(t).is_some()));
    }
    assert_eq!(own.grads.get_ids().count(), 3);
}

fn a_zero_b_gives_the_base_output_and_a_gradient_for_b_alone() {
    let (x, w0) = (random("x", &[ROWS, INNER]), random("w0", &[OUT, INNER]));
    let a = variable("a", &[RANK, INNER]);
    let b = Var::zeros((OUT, RANK), candle_core::DType::F32, &device()).unwrap().into_inner();
    let y = lora_linear(&x, &w0, None, &factors(&a, &b, None)).unwrap();
    assert_eq!(bits(&y), bits(&frozen_linear(&x, &w0, None).unwrap()));
    let grads = candle_loss(&y).backward().unwrap();
    assert!(values(grad(&grads, &b)).iter().any(|&g| g.abs() > 1e-3));
    assert!(values(grad(&grads, &a)).iter().all(|&g| g == 0.0));
}

fn gradients_add_up_where_a_value_is_used_twice() {
    let (w0, w1) = (random("w0", &[INNER, INNER]), random("w1", &[INNER, INNER]));
    check_operator(
        "two uses",
        &[variable("x", &[ROWS, INNER]), variable("a", &[RANK, INNER]), variable("b", &[INNER, RANK])],
        |t| {
            // x feeds three operators, once twice into the same one; the factors are shared by two layers.
            let first = lora_linear(&t[0], &w0, None, &factors(&t[1], &t[2], None))?;
            let second = lora_linear(&first, &w1, None, &factors(&t[1], &t[2], None))?;
            add(&mul(&t[0], &t[0])?, &add(&second, &t[0])?)
        },
        |t| {
            let first = lora_linear_composed(&t[0], &w0, None, &factors(&t[1], &t[2], None))?;
            let second = lora_linear_composed(&first, &w1, None, &factors(&t[1], &t[2], None))?;
            Ok(((&t[0] * &t[0])? + (second + &t[0])?)?)
        },
    );
}

fn other_operators_in_between_fall_back_to_candle() {
    let (x, w) = (variable("x", &[4, 3]), variable("w", &[2, 3]));
    let run = || own_loss(&linear(&x.tanh()?, &w, None)?);
    let own = differentiate(run).unwrap();
    assert!(!own.own_walk);
    let expected = run().unwrap().backward().unwrap();
    for t in [&x, &w] {
        assert_eq!(bits(grad(&own.grads, t)), bits(grad(&expected, t)));
    }
}

fn refuses_shapes_with_both_in_the_message() {
    let (x, w0) = (random("x", &[4, 3]), random("w0", &[2, 3]));
    let message = |result: Result<Tensor>| result.unwrap_err().to_string();
    let wrong = random("w", &[2, 4]);
    assert_eq!(message(linear(&x, &wrong, None)), "linear: the weight has shape [2, 4], expected [2, 3]");
    let (a, b) = (random("a", &[2, 3]), random("b", &[3, 2]));
    let found = message(lora_linear(&x, &w0, None, &factors(&a, &b, None)));
    assert_eq!(found, "lora_linear: lora_b has shape [3, 2], expected [2, 2]");
    let b = random("b", &[4]);
    let groups = |rows: usize, rank: usize| {
        let groups = [LoraGroup { rows, rank, scaling: 1.5, dropout_mask: None }];
        message(lora_linear_groups(&x, &w0, None, &StackedFactors { a: &a, b: &b, groups: &groups }))
    };
    let expected = "lora_linear_groups: the stacked lora_b has shape [4], expected [6]";
    assert_eq!(groups(4, 3), expected);
    assert_eq!(groups(3, 2), "lora_linear_groups: the rows of the groups is 3, expected 4");
    let x = x.to_dtype(candle_core::DType::F64).unwrap();
    assert_eq!(message(linear(&x, &w0, None)), "linear: x has type F64, expected F32");
}

fn a_loss_of_more_than_one_element_is_refused() {
    let x = variable("x", &[4, 3]);
    let error = value_and_grad(|| silu(&x)).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "the loss has shape [4, 3], expected one element");
}

#[test]
fn no_product_of_the_size_of_a_frozen_weight_is_ever_made_backward() {
    // Sizes that no other test has, so that what they count does not matter here.
    let (rows, inner, out, rank) = (29, 53, 37, 5);
    let x = variable("x", &[rows, inner]);
    let (w0, a, b) =
        (variable("w0", &[out, inner]), variable("a", &[rank, inner]), variable("b", &[out, rank]));
    let run = || {
        let lora = LoraFactors { a: &a, b: &b, scaling: SCALING, dropout_mask: None };
        frozen_linear(&lora_linear(&x, &w0, None, &lora)?, &random("w1", &[inner, out]), None)
    };
    assert!(differentiate(|| own_loss(&run()?)).unwrap().own_walk);
    candle_loss(&run().unwrap()).backward().unwrap();
    assert!(counted::contains((rank, inner)) && counted::contains((rank, out)), "the factors' gradients");
    assert!(
        !counted::contains((out, inner)) && !counted::contains((inner, out)),
        "a frozen weight's gradient"
    );
    differentiate(|| own_loss(&linear(&x, &w0, None)?)).unwrap();
    assert!(counted::contains((out, inner)), "a trained weight's gradient is counted");
}
