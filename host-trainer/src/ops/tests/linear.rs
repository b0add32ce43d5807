//! Linear layers.

use super::*;

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
    Tensor::from_vec(values, (ROWS, INNER), &Device::Cpu).unwrap()
}

#[test]
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

#[test]
fn frozen_linear_ignores_variables() {
    let (x, w, bias) = (variable("x", &[4, 3]), variable("w", &[2, 3]), variable("bias", &[2]));
    let grads = candle_loss(&frozen_linear(&x, &w, Some(&bias)).unwrap()).backward().unwrap();
    assert!(grads.get(&x).is_some());
    assert!(grads.get(&w).is_none() && grads.get(&bias).is_none());
}

#[test]
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

#[test]
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

#[test]
fn a_zero_b_gives_the_base_output_and_a_gradient_for_b_alone() {
    let (x, w0) = (random("x", &[ROWS, INNER]), random("w0", &[OUT, INNER]));
    let a = variable("a", &[RANK, INNER]);
    let b = Var::zeros((OUT, RANK), candle_core::DType::F32, &Device::Cpu).unwrap().into_inner();
    let y = lora_linear(&x, &w0, None, &factors(&a, &b, None)).unwrap();
    assert_eq!(bits(&y), bits(&frozen_linear(&x, &w0, None).unwrap()));
    let grads = candle_loss(&y).backward().unwrap();
    assert!(values(grad(&grads, &b)).iter().any(|&g| g.abs() > 1e-3));
    assert!(values(grad(&grads, &a)).iter().all(|&g| g == 0.0));
}

#[test]
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

#[test]
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

#[test]
fn refuses_shapes_with_both_in_the_message() {
    let (x, w0) = (random("x", &[4, 3]), random("w0", &[2, 3]));
    let message = |result: Result<Tensor>| result.unwrap_err().to_string();
    let wrong = random("w", &[2, 4]);
    assert_eq!(message(linear(&x, &wrong, None)), "linear: the weight has shape [2, 4], expected [2, 3]");
    let (a, b) = (random("a", &[2, 3]), random("b", &[3, 2]));
    let found = message(lora_linear(&x, &w0, None, &factors(&a, &b, None)));
    assert_eq!(found, "lora_linear: lora_b has shape [3, 2], expected [2, 2]");
    let x = x.to_dtype(candle_core::DType::F64).unwrap();
    assert_eq!(message(linear(&x, &w0, None)), "linear: x has type F64, expected F32");
}

#[test]
fn a_loss_of_more_than_one_element_is_refused() {
    let x = variable("x", &[4, 3]);
    let error = value_and_grad(|| silu(&x)).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "the loss has shape [4, 3], expected one element");
}
