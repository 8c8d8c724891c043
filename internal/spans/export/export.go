// Package export makes OpenTelemetry traces of starts: the other end of package
// spans, in the program thaw-otel.
//
// Exporter, resource, sampler and batches are the SDK's, configured by the
// environment that its specification describes (OTEL_*). A trace has a root span
// for the start, and below it one for each phase.
package export

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/thaw-project/thaw/internal/spans"
)

// endTimeout bounds how long what is left is tried to be sent at the end.
const endTimeout = 2 * time.Second

// maxLine bounds a start as JSON.
const maxLine = 1 << 20

// Serve sends the starts that come on in, until it ends. It returns an error when
// the environment asks for what there is not; what cannot be sent the SDK says on the
// standard error.
func Serve(ctx context.Context, in io.Reader) error {
	exporter, err := newExporter(ctx)
	if err != nil {
		return fmt.Errorf("make exporter: %w", err)
	}
	// What the environment says comes last, and so wins.
	res, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(), resource.WithAttributes(attribute.String("service.name", "thaw")),
		resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) && !errors.Is(err, resource.ErrSchemaURLConflict) {
		return fmt.Errorf("describe this machine: %w", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(res))
	tracer := provider.Tracer("github.com/thaw-project/thaw")
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var s spans.Start
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			fmt.Fprintln(os.Stderr, "thaw-otel: a start that cannot be read:", err)
			continue
		}
		record(ctx, tracer, &s)
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if err := errors.Join(lines.Err(), provider.Shutdown(end)); err != nil {
		return fmt.Errorf("send traces: %w", err)
	}
	return nil
}

// newExporter makes the one that OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_PROTOCOL ask
// for; it reads the other variables itself.
func newExporter(ctx context.Context) (sdktrace.SpanExporter, error) {
	if name := os.Getenv("OTEL_TRACES_EXPORTER"); name != "" && name != "otlp" {
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER is %q: only otlp is supported", name)
	}
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	switch protocol {
	case "", "http/protobuf":
		return otlptracehttp.New(ctx)
	case "grpc":
		return otlptracegrpc.New(ctx)
	}
	return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q: use http/protobuf or grpc", protocol)
}

// record makes a trace of a start.
func record(ctx context.Context, tracer trace.Tracer, s *spans.Start) {
	if s.Traceparent != "" {
		ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": s.Traceparent})
	}
	ctx, root := tracer.Start(ctx, "start", trace.WithTimestamp(s.Begun), trace.WithAttributes(
		attribute.String("container.image.name", s.Image),
		attribute.String("container.image.id", s.Manifest),
		attribute.String("thaw.mount", s.Mount),
		attribute.String("thaw.mode", s.Mode),
		attribute.String("thaw.index", s.Index),
		attribute.StringSlice("thaw.fallback.reasons", s.Reasons),
		attribute.Int("thaw.reads.waited", s.Waits),
		attribute.Float64("thaw.reads.wait_seconds", s.WaitTotal.Seconds()),
		attribute.Int64("thaw.network.bytes", s.NetworkBytes),
		attribute.Int64("thaw.network.requests", s.Requests)))
	end := s.Begun
	for _, p := range s.Phases {
		_, span := tracer.Start(ctx, p.Name, trace.WithTimestamp(p.Start))
		if p.Detail != "" {
			span.SetAttributes(attribute.String("thaw.detail", p.Detail))
		}
		span.End(trace.WithTimestamp(p.End))
		if p.End.After(end) {
			end = p.End
		}
	}
	if s.Error != "" {
		root.SetStatus(codes.Error, s.Error)
	}
	root.End(trace.WithTimestamp(end))
}
