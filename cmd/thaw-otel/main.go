// Command thaw-otel sends traces of starts to an OpenTelemetry collector. thaw's daemon
// runs it when the environment has OTEL_EXPORTER_OTLP_ENDPOINT or its like, and gives
// it starts on its standard input; thaw emit otlp does so with measured ones.
//
// It is a program of its own because the SDK would cost each start of thaw a part of a
// millisecond, and megabytes, traces or none.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/thaw-project/thaw/internal/spans"
	"github.com/thaw-project/thaw/internal/spans/export"
)

func main() {
	strict := len(os.Args) == 2 && os.Args[1] == spans.FlagStrict
	if len(os.Args) > 1 && !strict {
		fmt.Fprintln(os.Stderr, "Started by thaw daemon and thaw emit otlp, see docs/observability.md. Starts come on standard input; OTEL_* variables say where they go.")
		os.Exit(2)
	}
	if err := export.Serve(context.Background(), os.Stdin, export.Options{Strict: strict}); err != nil {
		fmt.Fprintln(os.Stderr, "thaw-otel:", err)
		os.Exit(1)
	}
}
