//! Small graphs written by hand: one BERT, and what other exporters make of its parts.

use encoder::Activation;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
    tensor_proto::DataType,
};

use super::recognize;
use crate::exported::{Encoder, Head, Positions};

/// `vocab_size` 5, `hidden_size` 4, 2 heads, `intermediate_size` 6, one layer, two labels.
const BERT: &str = "
    len = Shape(input_ids)
    places = Range(zero, len, one)
    words = Gather(word, input_ids)
    rows = Gather(position, places)
    sum = Add(words, rows)
    embeddings = LayerNormalization(sum, norm_weight, norm_bias) epsilon=0.5
    q = MatMul(embeddings, query)
    q_biased = Add(q, query_bias)
    q_split = Reshape(q_biased, heads)
    q_heads = Transpose(q_split)
    k = MatMul(embeddings, key)
    k_split = Reshape(k, heads)
    k_heads = Transpose(k_split)
    v = MatMul(embeddings, value)
    v_split = Reshape(v, heads)
    v_heads = Transpose(v_split)
    product = MatMul(q_heads, k_heads)
    scaled = Div(product, root)
    masked = Add(scaled, attention_mask)
    scores = Softmax(masked) axis=-1
    mixed = MatMul(scores, v_heads)
    context = Transpose(mixed)
    dense = MatMul(context, dense_weight)
    added = Add(dense, embeddings)
    attended = LayerNormalization(added, norm_weight, norm_bias)
    wide = Gemm(attended, wide_weight, wide_bias)
    active = Relu(wide)
    narrow = MatMul(active, narrow_weight)
    added_again = Add(attended, narrow)
    hidden = LayerNormalization(added_again, norm_weight, norm_bias)
    first = Gather(hidden, zero) axis=1
    logits = Gemm(first, labels, labels_bias) transB=1
";

/// The graph of `lines`, `output = Op(inputs) attribute=number …`, ending in its output.
fn model(lines: &str) -> ModelProto {
    let nodes = lines.trim().lines().map(node).collect::<Vec<_>>();
    let value = |name: &str| ValueInfoProto { name: name.to_owned(), ..Default::default() };
    let output = nodes.last().map(|node| value(&node.output[0]));
    let graph = GraphProto {
        node: nodes,
        input: ["input_ids", "attention_mask", "token_type_ids"].map(value).to_vec(),
        output: output.into_iter().collect(),
        initializer: vec![
            weights("word", &[5, 4]),
            weights("position", &[7, 4]),
            weights("types_table", &[3, 4]),
            weights("norm_weight", &[4]),
            weights("norm_bias", &[4]),
            weights("query", &[4, 4]),
            weights("query_bias", &[4]),
            weights("key", &[4, 4]),
            weights("value", &[4, 4]),
            weights("dense_weight", &[4, 4]),
            weights("wide_weight", &[4, 6]),
            weights("wide_bias", &[6]),
            weights("narrow_weight", &[6, 4]),
            weights("labels", &[2, 4]),
            weights("labels_bias", &[2]),
            constant("buckets", &[4, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]),
            constant("heads", &[4], &[0.0, 0.0, 2.0, 2.0]),
            constant("zero", &[], &[0.0]),
            constant("half", &[], &[0.5]),
            constant("one", &[], &[1.0]),
            constant("two", &[], &[2.0]),
            constant("three", &[], &[3.0]),
            constant("root", &[], &[2.0_f32.sqrt()]),
            constant("cubic", &[], &[0.044_715]),
            constant("slope", &[], &[0.797_884_6]),
        ],
        ..Default::default()
    };
    ModelProto { graph: Some(graph), ..Default::default() }
}

fn node(line: &str) -> NodeProto {
    let (output, call) = line.trim().split_once(" = ").unwrap();
    let (call, attributes) = call.split_once(')').unwrap();
    let (op, inputs) = call.split_once('(').unwrap();
    let attribute = |text: &str| {
        let (name, number) = text.split_once('=').unwrap();
        let f: f32 = number.parse().unwrap();
        AttributeProto { name: name.to_owned(), f, i: f as i64, ..Default::default() }
    };
    NodeProto {
        op_type: op.to_owned(),
        input: inputs.split(", ").map(str::to_owned).collect(),
        output: vec![output.to_owned()],
        attribute: attributes.split_whitespace().map(attribute).collect(),
        ..Default::default()
    }
}

fn weights(name: &str, dims: &[i64]) -> TensorProto {
    let len = dims.iter().product::<i64>();
    let seed = name.bytes().map(i64::from).sum::<i64>();
    constant(name, dims, &(0..len).map(|i| ((seed + i * 7) % 13) as f32 - 6.0).collect::<Vec<_>>())
}

fn constant(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        float_data: values.to_vec(),
        ..Default::default()
    }
}

/// [`BERT`] with one line instead of another.
fn bert_with(line: &str, instead: &str) -> ModelProto {
    assert!(BERT.contains(line), "{line}");
    model(&BERT.replace(line, instead))
}

fn reason(model: &ModelProto) -> String {
    recognize(model).unwrap_err().to_string()
}

#[test]
fn the_parts_of_an_encoder_come_with_their_weights() {
    let encoder = recognize(&model(BERT)).unwrap();
    let word = weights("word", &[5, 4]).float_data;
    assert_eq!(encoder.embeddings.word.values, word);
    assert_eq!(encoder.embeddings.positions, Positions::FromZero);
    assert_eq!(encoder.embeddings.norm.epsilon, 0.5);
    assert_eq!((encoder.num_heads, encoder.layers.len()), (2, 1));
    let layer = &encoder.layers[0];
    let query = weights("query", &[4, 4]).float_data;
    let transposed: Vec<_> = (0..16).map(|i| query[i % 4 * 4 + i / 4]).collect();
    assert_eq!(layer.query.weight, transposed);
    assert_eq!(layer.query.bias, weights("query_bias", &[4]).float_data);
    assert_eq!(layer.key.bias, [0.0; 4]);
    assert_eq!((layer.intermediate.in_features, layer.intermediate.out_features), (4, 6));
    assert_eq!(layer.activation, Activation::Relu);
    let Head::FirstToken(head) = encoder.head else { panic!("{:?}", encoder.head) };
    assert_eq!(head[0].0.weight, weights("labels", &[2, 4]).float_data);
    assert_eq!(head[0].1, Activation::Identity);
}

#[test]
fn the_same_part_is_known_in_other_words() {
    let same = |encoder: &Encoder| format!("{:?} {:?}", encoder.embeddings, encoder.layers);
    let expected = same(&recognize(&model(BERT)).unwrap());
    let cases = [
        ("bias first", "q_biased = Add(q, query_bias)", "q_biased = Add(query_bias, q)"),
        ("residual first", "added = Add(dense, embeddings)", "added = Add(embeddings, dense)"),
        (
            "guarded softmax",
            "scores = Softmax(masked) axis=-1",
            "softmax = Softmax(masked) axis=3
             nan = IsNaN(softmax)
             scores = Where(nan, zero, softmax)",
        ),
        (
            "masked by choice",
            "masked = Add(scaled, attention_mask)",
            "masked = Where(attention_mask, scaled, zero)",
        ),
        (
            "normalization in parts",
            "embeddings = LayerNormalization(sum, norm_weight, norm_bias) epsilon=0.5",
            "axis = Constant() value_int=-1
             mean = ReduceMean(sum, axis)
             centered = Sub(sum, mean)
             square = Mul(centered, centered)
             variance = ReduceMean(square, axis)
             safe = Add(half, variance)
             deviation = Sqrt(safe)
             inverse = Reciprocal(deviation)
             normalized = Mul(centered, inverse)
             weighted = Mul(norm_weight, normalized)
             embeddings = Add(weighted, norm_bias)",
        ),
        (
            "attention as one operator",
            "mixed = MatMul(scores, v_heads)",
            "mixed = Attention(q_heads, k_heads, v_heads, attention_mask)",
        ),
    ];
    for (name, line, instead) in cases {
        match recognize(&bert_with(line, instead)) {
            Ok(encoder) => assert_eq!(same(&encoder), expected, "{name}"),
            Err(why) => panic!("{name}: {why}"),
        }
    }
}

#[test]
fn gelu_is_known_however_it_is_multiplied_out() {
    let cases = [
        ("Gelu", "active = Gelu(wide)", Activation::Gelu),
        (
            "halved last",
            "turned = Div(wide, root)
             erf = Erf(turned)
             gate = Add(erf, one)
             gated = Mul(wide, gate)
             active = Mul(gated, half)",
            Activation::Gelu,
        ),
        (
            "halved first",
            "small = Mul(half, wide)
             turned = Div(wide, root)
             erf = Erf(turned)
             gate = Add(one, erf)
             active = Mul(small, gate)",
            Activation::Gelu,
        ),
        (
            "gelu_new",
            "cube = Pow(wide, three)
             bent = Mul(cube, cubic)
             bow = Add(wide, bent)
             steep = Mul(bow, slope)
             tanh = Tanh(steep)
             gate = Add(tanh, one)
             small = Mul(wide, half)
             active = Mul(small, gate)",
            Activation::GeluTanh,
        ),
        (
            "gelu_fast",
            "steep = Mul(wide, slope)
             bent = Mul(wide, cubic)
             square = Mul(bent, wide)
             factor = Add(one, square)
             inner = Mul(steep, factor)
             tanh = Tanh(inner)
             gate = Add(one, tanh)
             small = Mul(wide, half)
             active = Mul(small, gate)",
            Activation::GeluTanh,
        ),
    ];
    for (name, instead, expected) in cases {
        match recognize(&bert_with("active = Relu(wide)", instead)) {
            Ok(encoder) => assert_eq!(encoder.layers[0].activation, expected, "{name}"),
            Err(why) => panic!("{name}: {why}"),
        }
    }
}

#[test]
fn another_scale_of_the_scores_goes_into_the_queries() {
    let query = |model| recognize(&model).unwrap().layers.remove(0).query;
    let standard = query(model(BERT));
    let doubled = query(bert_with("scaled = Div(product, root)", "scaled = Mul(product, root)"));
    for (doubled, standard) in doubled.weight.iter().zip(&standard.weight) {
        assert!((doubled - 2.0 * standard).abs() < 1e-5);
    }
    let by_shape = "shape = Shape(q_heads)
        size = Gather(shape, three)
        computed = Sqrt(size)
        scaled = Div(product, computed)";
    assert_eq!(query(bert_with("scaled = Div(product, root)", by_shape)), standard);
}

#[test]
fn a_table_that_is_added_to_the_scores_is_a_position_bias() {
    let biased = "distances = Sub(places, places)
        rows_of_bias = Gather(buckets, distances)
        bias = Transpose(rows_of_bias)
        biased = Add(scaled, bias)
        masked = Add(attention_mask, biased)";
    let encoder = recognize(&bert_with("masked = Add(scaled, attention_mask)", biased)).unwrap();
    let bias = encoder.position_bias.unwrap();
    assert_eq!((bias.table.num_rows, bias.table.width, bias.max_distance), (4, 2, 128));
    assert_eq!(bias.table.values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
}

#[test]
fn positions_are_counted_from_where_the_graph_says() {
    let positions = |instead: &str| {
        let embeddings =
            recognize(&bert_with("places = Range(zero, len, one)", instead))?.embeddings;
        Ok::<_, super::Unrecognized>((embeddings.positions, embeddings.position.num_rows))
    };
    let roberta = "pad = Equal(input_ids, two)
        text = Not(pad)
        steps = Cast(text) to=7
        count = CumSum(steps, one)
        kept = Mul(count, steps)
        places = Add(kept, two)";
    let after_padding = Positions::AfterPadding { padding_idx: 2 };
    assert_eq!(positions(roberta), Ok((after_padding, 7)));
    assert_eq!(positions("places = Range(two, len, one)"), Ok((Positions::FromZero, 5)));
    let other_start = roberta.replace("(kept, two)", "(kept, three)");
    let why = positions(&other_start).unwrap_err();
    assert_eq!(why.to_string(), "cannot tell which rows of a table are embedded");
}

#[test]
fn token_types_that_the_graph_does_not_read_leave_one_row() {
    let typed = "text = Add(words, types)
        sum = Add(text, rows)";
    for (indices, num_rows) in [
        ("types = Gather(types_table, token_type_ids)", 3),
        ("zeros = ConstantOfShape(len)\n types = Gather(types_table, zeros)", 1),
    ] {
        let instead = format!("{indices}\n{typed}");
        let encoder = recognize(&bert_with("sum = Add(words, rows)", &instead)).unwrap();
        assert_eq!(encoder.embeddings.token_type.unwrap().num_rows, num_rows, "{indices}");
    }
}

#[test]
fn a_head_of_another_kind_is_left_to_tract() {
    let mean = "first = ReduceMax(hidden, attention_mask)";
    let encoder = recognize(&bert_with("first = Gather(hidden, zero) axis=1", mean)).unwrap();
    let Head::Graph(rest) = encoder.head else { panic!("{:?}", encoder.head) };
    let graph = rest.graph.unwrap();
    let ops: Vec<_> = graph.node.iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(ops, ["Identity", "ReduceMax", "Gemm"]);
    let inputs: Vec<_> = graph.input.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(inputs, ["hidden_states", "attention_mask"]);
    let initializers: Vec<_> = graph.initializer.iter().map(|each| each.name.as_str()).collect();
    assert_eq!(initializers, ["labels", "labels_bias"]);
}

#[test]
fn what_is_no_encoder_is_refused_with_its_reason() {
    let cases = [
        (
            "words = Gather(word, input_ids)",
            "words = Gather(word, logits)",
            "tensor \"logits\" is read before it is made",
        ),
        (
            "sum = Add(words, rows)",
            "sum = Add(words, words)",
            "two embeddings are of the same kind",
        ),
        (
            "added = Add(dense, embeddings)",
            "added = Add(dense, sum)",
            "no layer adds to the embeddings and normalizes the sum",
        ),
        (
            "active = Relu(wide)",
            "active = Sigmoid(wide)",
            "layer 0: the activation is none of gelu, relu, tanh",
        ),
        (
            "masked = Add(scaled, attention_mask)",
            "masked = Add(scaled, k_heads)",
            "layer 0: hidden states are added to the scores",
        ),
        (
            "k = MatMul(embeddings, key)",
            "k = MatMul(words, key)",
            "layer 0: the attention is not over the hidden states alone",
        ),
        (
            "wide = Gemm(attended, wide_weight, wide_bias)",
            "wide = Gemm(attended, narrow_weight, norm_bias)",
            "the parts of a layer differ in width",
        ),
        (
            "first = Gather(hidden, zero) axis=1",
            "first = Mul(hidden, embeddings)",
            "the head looks into the layers",
        ),
    ];
    for (line, instead, expected) in cases {
        assert_eq!(reason(&bert_with(line, instead)), expected);
    }
    assert_eq!(reason(&ModelProto::default()), "the file holds no graph");
}

#[test]
fn a_broken_graph_is_refused_without_a_panic() {
    let whole = model(BERT);
    let num_nodes = whole.graph.as_ref().unwrap().node.len();
    let breaks: [fn(&mut NodeProto); 4] = [
        |node| node.input.clear(),
        |node| node.output.clear(),
        |node| node.attribute.clear(),
        |node| node.op_type = "Add".to_owned(),
    ];
    for index in 0..num_nodes {
        let mut without = whole.clone();
        without.graph.as_mut().unwrap().node.remove(index);
        assert!(recognize(&without).is_err(), "without node {index}");
        for damage in breaks {
            let mut broken = whole.clone();
            damage(&mut broken.graph.as_mut().unwrap().node[index]);
            // Some are as good as before: what a `Shape` is of does not matter here.
            let _ = recognize(&broken);
        }
    }
    for index in 0..whole.graph.as_ref().unwrap().initializer.len() {
        for dims in [&[0][..], &[-1, 4], &[i64::MAX, i64::MAX], &[1, 1, 1, 1, 1]] {
            let mut broken = whole.clone();
            broken.graph.as_mut().unwrap().initializer[index].dims = dims.to_vec();
            let _ = recognize(&broken);
        }
    }
}
