//! What a reader or writer speaks of when it refuses. A number on a device, words on the host: a firmware that never shows
//! them does not carry them.

macro_rules! subjects {
    ($($name:ident => $words:literal,)*) => {
        /// What is wrong in an [`crate::Error`]; displayed in words.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum What {
            $(#[doc = $words] $name,)*
        }

        impl core::fmt::Display for What {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(match self { $(Self::$name => $words,)* })
            }
        }
    };
}

subjects! {
    AdapterBody => "adapter body",
    AdapterFile => "adapter file",
    AdapterPayload => "adapter payload",
    Alpha => "alpha",
    AttentionRows => "rows of q, k and v",
    AttentionScale => "attention",
    BaseHeader => "base header",
    BaseImage => "base image",
    BaseManifest => "base manifest",
    BaseNameLength => "length of the base's name",
    BosId => "bos id",
    Code => "int8 code (-128 is not a code)",
    CodeAt => "int8 code (-128 is not a code) at",
    Component => "component",
    EosId => "eos id",
    Eps => "eps",
    Features => "features",
    FeaturesOrder => "features (written before the output)",
    Frame => "frame",
    FrameBuffer => "frame buffer",
    HeadBias => "bias of the task head",
    HeadBiasBytes => "bytes of the head's bias",
    HeadLabelCount => "labels of the head",
    HeadLabels => "labels of the task head",
    HeadOutputs => "outputs of the task head",
    HeadRow => "head row",
    HeaderLength => "header length",
    Heads => "n_heads (a multiple of n_kv_heads, a divisor of the width)",
    ImageAddress => "address of the base image",
    InFeatures => "in_features",
    InputOperator => "graph: the first operator, and only that, is an input",
    KeyWidth => "width of k",
    LabelCount => "number of labels",
    Labels => "labels",
    LastByteId => "id of byte 255",
    MaxRows => "longest sequence",
    Message => "message",
    OperandShape => "width or rows of b",
    Operator => "operator",
    OperatorCount => "number of operators",
    Output => "output",
    Padding => "padding before the payload",
    PassRows => "rows of a pass",
    PieceLength => "length of a piece",
    PlannedShape => "width or rows in the arena plan",
    Pooling => "pooling of the task head (the features are one row)",
    PositionTableRows => "rows of a table of relative positions (even)",
    PositionTableWidth => "width of a position table",
    Positions => "positions",
    PrependedRows => "rows before a prepended token",
    Reserved => "reserved field of the header (it must be zero)",
    RopeWidth => "width (a multiple of head_size)",
    Row => "row",
    SelectedRow => "selected row",
    SelfTestRows => "rows of the self-test",
    Signature => "signature (the header names no key)",
    SiteEntry => "site entry",
    SiteNameCount => "number of site names",
    SiteNames => "site names",
    StepLimit => "step limit (from 1)",
    TaskNameLength => "length of the task name",
    TensorColumns => "columns of a tensor",
    TensorCount => "number of tensors",
    TensorData => "tensor: its data does not have the stated size",
    TensorDirectory => "tensor directory",
    TensorIndex => "tensor index",
    TensorRecord => "tensor record",
    TensorRows => "rows of a tensor",
    TensorSection => "tensor section",
    TokenBuffer => "token buffer",
    TokenRows => "rows (those of the tokens, and no others)",
    TokenScore => "token score",
    TokenizerSection => "tokenizer section",
    Unquantized => "tensor: the matrix is not quantized",
    Value => "value",
    ValueDirectory => "value directory",
    ValueEnd => "end of a value in the arena",
    ValueHeadWidth => "width of v",
    ValueIndex => "value index",
    ValueRead => "value read by an operator",
    ValueRecord => "value record",
    ValueWidth => "width of a value",
    VectorKind => "kind of a vector tensor (f32, one row)",
    VectorLength => "length of a vector tensor",
    Vocabulary => "vocabulary of the tokenizer",
    VocabularySize => "vocabulary of a tokenizer",
    Weight => "weight",
    WeightKind => "kind of a weight (int8 matrix)",
    WholePass => "rows of a pass (the whole sequence)",
}
