/// A mistake in a kernel, which a check has to find.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// Before the names of its kernels.
    pub name: &'static str,
    /// The kernels that are compiled with it.
    pub kernels: &'static str,
    /// Where the mistake is made.
    pub file: &'static str,
    /// What stands there, once.
    pub from: &'static str,
    /// The mistake.
    pub to: &'static str,
    /// What the check says of it.
    pub seen_as: &'static str,
}

/// One of each kind that has been made, or is easily made.
pub const MUTANTS: [Mutant; 15] = [
    Mutant {
        name: "variance of the padding, too: ",
        kernels: "norm",
        file: "row.cuh",
        from: "if (column + i < norm.hidden_size) squares",
        to: "if (column >= 0) squares",
        seen_as: "is off by",
    },
    Mutant {
        name: "one token too many: ",
        kernels: "embeddings",
        file: "embeddings.cu",
        from: "token >= *args.num_tokens",
        to: "token > *args.num_tokens",
        seen_as: "behind the last",
    },
    Mutant {
        name: "no barrier before a slice is read: ",
        kernels: "linear",
        file: "linear.cu",
        from: "        barrier();\n",
        to: "",
        seen_as: "is off by",
    },
    Mutant {
        name: "a slice is overwritten before the barrier: ",
        kernels: "linear",
        file: "linear.cu",
        from: "        barrier();\n        start(slice + Shape::kStages - 1);\n",
        to: "        start(slice + Shape::kStages - 1);\n        barrier();\n",
        seen_as: "is off by",
    },
    Mutant {
        name: "waits for one slice too few: ",
        kernels: "linear",
        file: "linear.cu",
        from: "wait_copies<Shape::kStages - 2>",
        to: "wait_copies<Shape::kStages - 1>",
        seen_as: "is off by",
    },
    Mutant {
        name: "one row too many: ",
        kernels: "linear",
        file: "linear.cu",
        from: "if (row >= num_rows ||",
        to: "if (row > num_rows ||",
        seen_as: "behind the last",
    },
    Mutant {
        name: "weights of rows that are not there: ",
        kernels: "linear",
        file: "linear.cu",
        from: "first_column + column >= args.out_stride",
        to: "first_column + column > args.out_stride",
        seen_as: "not its own",
    },
    Mutant {
        name: "rows in their own banks: ",
        kernels: "linear",
        file: "device.cuh",
        from: "(chunk ^ turn)",
        to: "(chunk + 0 * turn)",
        seen_as: "conflicts of banks",
    },
    Mutant {
        name: "no barrier before keys are read: ",
        kernels: "attention",
        file: "attention.cu",
        from: "        barrier();\n",
        to: "",
        seen_as: "is off by",
    },
    Mutant {
        name: "does not wait for keys: ",
        kernels: "attention",
        file: "attention.cu",
        from: "        wait_copies<0>();\n",
        to: "",
        seen_as: "is off by",
    },
    Mutant {
        name: "one key too many: ",
        kernels: "attention",
        file: "attention.cu",
        from: "scores[group][i] = key < seq_len",
        to: "scores[group][i] = key <= seq_len",
        seen_as: "is off by",
    },
    Mutant {
        name: "values not transposed: ",
        kernels: "attention",
        file: "attention.cu",
        from: "ldmatrix_transposed(value,",
        to: "ldmatrix(value,",
        seen_as: "is off by",
    },
    Mutant {
        name: "sum of the first maximum: ",
        kernels: "attention",
        file: "attention.cu",
        from: "            sum[row] *= shrink;\n",
        to: "",
        seen_as: "is off by",
    },
    Mutant {
        name: "head by head in the same banks: ",
        kernels: "attention",
        file: "device.cuh",
        from: "(chunk ^ turn)",
        to: "(chunk + 0 * turn)",
        seen_as: "conflicts of banks",
    },
    Mutant {
        name: "mean without the first token: ",
        kernels: "pool",
        file: "pool.cu",
        from: "for (i64 token = 0; token < seq_len; ++token) sum",
        to: "for (i64 token = 1; token < seq_len; ++token) sum",
        seen_as: "is off by",
    },
];
