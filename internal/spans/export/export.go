// Package export makes OpenTelemetry traces of starts: the other end of package
// spans, in the program thaw-otel.
//
// Exporter, resource, sampler and batches are the SDK's, configured by the
// environment that its specification describes (OTEL_*). A trace has a root span
// for the start, and below it one for each phase.
package export

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
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

// endTimeout bounds how long what is left is tried to be sent at the end; strictTimeout
// does where somebody waits to know that it was.
const (
	endTimeout    = 2 * time.Second
	strictTimeout = 30 * time.Second
)

// maxLine bounds a start as JSON.
const maxLine = 1 << 20

// Options are how Serve sends.
type Options struct {
	// Strict makes what cannot be read or sent an error. Else it is said on the
	// standard error, and what comes next goes on.
	Strict bool
}

// Serve sends the starts that come on in, until it ends. It returns an error when
// the environment asks for what there is not; what cannot be sent the SDK says on the
// standard error.
func Serve(ctx context.Context, in io.Reader, o Options) error {
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
	timeout := endTimeout
	var batching []sdktrace.BatchSpanProcessorOption
	failed := &firstError{}
	if o.Strict {
		timeout = strictTimeout
		batching = append(batching, sdktrace.WithBlocking())
		exporter = &watched{exporter, failed}
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter, batching...), sdktrace.WithResource(res), sdktrace.WithIDGenerator(ids{}))
	tracer := provider.Tracer("github.com/thaw-project/thaw")
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var s spans.Start
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			if o.Strict {
				failed.set(fmt.Errorf("read start: %w", err))
			} else {
				fmt.Fprintln(os.Stderr, "thaw-otel: a start that cannot be read:", err)
			}
			continue
		}
		record(ctx, tracer, &s)
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	if err := errors.Join(lines.Err(), provider.Shutdown(end), failed.err); err != nil {
		return fmt.Errorf("send traces: %w", err)
	}
	return nil
}

// firstError keeps the first of several errors.
type firstError struct {
	mu  sync.Mutex // guards err, until all who set it are gone
	err error
}

func (e *firstError) set(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil {
		e.err = err
	}
}

// watched is an exporter that notes that it failed: the batches tell nobody.
type watched struct {
	sdktrace.SpanExporter
	failed *firstError
}

func (w *watched) ExportSpans(ctx context.Context, all []sdktrace.ReadOnlySpan) error {
	err := w.SpanExporter.ExportSpans(ctx, all)
	if err != nil {
		w.failed.set(err)
		return nil // said once, by who waits
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

// seed is what the identities below a context are made of.
type seed struct {
	id string
	n  uint64 // spans until now
}

type seedKey struct{}

func (s *seed) next(b []byte) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d", s.id, s.n))
	s.n++
	copy(b, sum[:])
}

// ids makes identities of a start's ID where it has one, and random ones.
type ids struct{}

func (ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	var t trace.TraceID
	if s, ok := ctx.Value(seedKey{}).(*seed); ok {
		s.next(t[:])
	} else {
		_, _ = rand.Read(t[:]) // never fails
	}
	return t, ids{}.NewSpanID(ctx, t)
}

func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	var id trace.SpanID
	if s, ok := ctx.Value(seedKey{}).(*seed); ok {
		s.next(id[:])
	} else {
		_, _ = rand.Read(id[:])
	}
	return id
}

// record makes a trace of a start.
func record(ctx context.Context, tracer trace.Tracer, s *spans.Start) {
	if s.Traceparent != "" {
		ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": s.Traceparent})
	}
	if s.ID != "" {
		ctx = context.WithValue(ctx, seedKey{}, &seed{id: s.ID})
	}
	ctx, root := tracer.Start(ctx, cmp.Or(s.Name, "start"), trace.WithTimestamp(s.Begun), trace.WithAttributes(rootAttributes(s)...))
	end := s.Begun
	for _, p := range s.Phases {
		_, span := tracer.Start(ctx, p.Name, trace.WithTimestamp(p.Start), trace.WithAttributes(attributes(p.Attributes)...))
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
	if s.End.After(end) {
		end = s.End
	}
	root.End(trace.WithTimestamp(end))
}

func rootAttributes(s *spans.Start) []attribute.KeyValue {
	var all []attribute.KeyValue
	for _, a := range []struct{ key, value string }{{"container.image.name", s.Image}, {"container.image.id", s.Manifest}, {"thaw.mount", s.Mount}, {"thaw.mode", s.Mode}, {"thaw.index", s.Index}} {
		if s.Name == "" || a.value != "" {
			all = append(all, attribute.String(a.key, a.value))
		}
	}
	if s.Name == "" {
		all = append(all,
			attribute.StringSlice("thaw.fallback.reasons", s.Reasons),
			attribute.Int("thaw.reads.waited", s.Waits),
			attribute.Float64("thaw.reads.wait_seconds", s.WaitTotal.Seconds()),
			attribute.Int64("thaw.network.bytes", s.NetworkBytes),
			attribute.Int64("thaw.network.requests", s.Requests))
	}
	return append(all, attributes(s.Attributes)...)
}

// attributes are those of a start or a phase, by name.
func attributes(m spans.Attributes) []attribute.KeyValue {
	var all []attribute.KeyValue
	for _, key := range slices.Sorted(maps.Keys(m)) {
		switch v := m[key].(type) {
		case string:
			all = append(all, attribute.String(key, v))
		case bool:
			all = append(all, attribute.Bool(key, v))
		case float64: // a collector wants one type of one name, whether or not there is a fraction now
			if strings.HasSuffix(key, "_ms") {
				all = append(all, attribute.Float64(key, v))
			} else {
				all = append(all, attribute.Int64(key, int64(v)))
			}
		}
	}
	return all
}
