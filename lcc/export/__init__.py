"""Export: other tools' formats and the parity gate."""
