// Command thaw-otel sends traces of starts to an OpenTelemetry collector. thaw's daemon
// runs it when the environment has OTEL_EXPORTER_OTLP_ENDPOINT or its like, and gives
// it starts on its standard input.
//
// It is a program of its own because the SDK would cost each start of thaw a part of a
// millisecond, and megabytes, traces or none.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/thaw-project/thaw/internal/spans/export"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "Started by thaw daemon, see docs/observability.md. Starts come on standard input; OTEL_* variables say where they go.")
		os.Exit(2)
	}
	if err := export.Serve(context.Background(), os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "thaw-otel:", err)
		os.Exit(1)
	}
}
