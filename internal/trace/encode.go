package trace

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

const (
	kind = "thaw-trace" // what the first line says it begins

	maxRuns      = 1 << 20
	maxHeadBytes = 4 << 20 // a command may be as long as the kernel allows, 2 MiB, and JSON makes it longer
	maxLineBytes = 256
	maxLayers    = 1000
	maxWindow    = 8 << 20
)

// DefaultMaxAccesses is more than a start that is worth a trace has.
const DefaultMaxAccesses = 1 << 18

// Limits of what Decode takes.
type Limits struct {
	MaxAccesses int // 0 for DefaultMaxAccesses
}

// head is the first line of a trace's text.
type head struct {
	Kind        string          `json:"kind"`
	Version     int             `json:"version"`
	Image       digest.Digest   `json:"image"`
	Reference   string          `json:"reference,omitempty"`
	Command     []string        `json:"command,omitempty"`
	ReadyMicros int64           `json:"readyMicros,omitempty"`
	Runs        int             `json:"runs"`
	Created     time.Time       `json:"created"`
	Layers      []digest.Digest `json:"layers,omitempty"`
	Accesses    int             `json:"accesses"`
}

// Encode writes a trace. The same trace gives the same bytes. Times are kept
// to the microsecond, Created to the second.
func Encode(w io.Writer, t *Trace) error {
	if err := t.check(); err != nil {
		return fmt.Errorf("encode trace: %w", err)
	}
	layers := t.Layers()
	number := make(map[digest.Digest]int, len(layers))
	for i, l := range layers {
		number[l] = i
	}
	// One writer at a time, so that the frame does not depend on the machine.
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return fmt.Errorf("encode trace: %w", err)
	}
	out := bufio.NewWriter(z)
	first, err := json.Marshal(head{
		Kind: kind, Version: t.Version, Image: t.Image, Reference: t.Reference, Command: t.Command,
		ReadyMicros: t.Ready.Microseconds(), Runs: t.Runs, Created: t.Created.UTC().Truncate(time.Second),
		Layers: layers, Accesses: len(t.Accesses),
	})
	if err != nil {
		return fmt.Errorf("encode trace: %w", err)
	}
	out.Write(first) // errors of out stay until Flush
	out.WriteByte('\n')
	for _, a := range t.Accesses {
		fmt.Fprintf(out, "[%d,%d,%d,%d,%q]\n", number[a.Layer], a.Offset, a.Length, a.At.Microseconds(), a.Phase)
	}
	if err := errors.Join(out.Flush(), z.Close()); err != nil {
		return fmt.Errorf("encode trace: %w", err)
	}
	return nil
}

// Decode reads what Encode wrote. What it returns is a trace that Encode takes;
// everything else is an error, and input beyond limits is not read.
func Decode(r io.Reader, limits Limits) (*Trace, error) {
	t, err := decode(r, limits)
	if err != nil {
		return nil, fmt.Errorf("decode trace: %w", err)
	}
	return t, nil
}

func decode(r io.Reader, limits Limits) (*Trace, error) {
	if limits.MaxAccesses <= 0 {
		limits.MaxAccesses = DefaultMaxAccesses
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	in := bufio.NewReaderSize(z, 16<<10)
	line, err := readLine(in, maxHeadBytes)
	if err != nil {
		return nil, fmt.Errorf("head: %w", err)
	}
	t, layers, accesses, err := decodeHead(line, limits)
	if err != nil {
		return nil, err
	}
	for i := range accesses {
		line, err := readLine(in, maxLineBytes)
		if err != nil {
			return nil, fmt.Errorf("access %d of %d: %w", i, accesses, err)
		}
		a, err := decodeAccess(line, layers)
		if err != nil {
			return nil, fmt.Errorf("access %d: %w", i, err)
		}
		t.Accesses = append(t.Accesses, a)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("there is more after its last access")
		}
		return nil, err
	}
	return t, t.check()
}

func decodeHead(line []byte, limits Limits) (t *Trace, layers []digest.Digest, accesses int, err error) {
	var h head
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, nil, 0, fmt.Errorf("head: %w", err)
	}
	if h.Kind != kind {
		return nil, nil, 0, errors.New("this is not a trace")
	}
	if h.Version != Version {
		return nil, nil, 0, fmt.Errorf("version %d is not known, only %d", h.Version, Version)
	}
	if h.Accesses < 0 || h.Accesses > limits.MaxAccesses {
		return nil, nil, 0, fmt.Errorf("%d accesses are more than %d", h.Accesses, limits.MaxAccesses)
	}
	if len(h.Layers) > maxLayers {
		return nil, nil, 0, fmt.Errorf("%d layers are more than %d", len(h.Layers), maxLayers)
	}
	for _, l := range h.Layers {
		if err := l.Validate(); err != nil {
			return nil, nil, 0, fmt.Errorf("layer %q: %w", l, err)
		}
	}
	ready, err := micros(h.ReadyMicros)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("ready: %w", err)
	}
	return &Trace{
		Version: h.Version, Image: h.Image, Reference: h.Reference, Command: h.Command, Ready: ready,
		Runs: h.Runs, Created: h.Created.UTC().Truncate(time.Second),
	}, h.Layers, h.Accesses, nil
}

func decodeAccess(line []byte, layers []digest.Digest) (Access, error) {
	var (
		layer, at int64
		a         Access
	)
	// Fewer fields than five leave Phase empty and more are cut off by
	// encoding/json, so both are counted.
	fields := []json.RawMessage{}
	if err := json.Unmarshal(line, &fields); err != nil {
		return Access{}, err
	}
	into := []any{&layer, &a.Offset, &a.Length, &at, &a.Phase}
	if len(fields) != len(into) {
		return Access{}, fmt.Errorf("%d fields, want %d", len(fields), len(into))
	}
	for i := range into {
		if err := json.Unmarshal(fields[i], into[i]); err != nil {
			return Access{}, err
		}
	}
	if layer < 0 || layer >= int64(len(layers)) {
		return Access{}, fmt.Errorf("layer %d of %d", layer, len(layers))
	}
	a.Layer = layers[layer]
	var err error
	a.At, err = micros(at)
	return a, err
}

// micros is a time of a trace: at most a year, so that no sum overflows.
func micros(n int64) (time.Duration, error) {
	const year = 366 * 24 * time.Hour
	if n < 0 || n > year.Microseconds() {
		return 0, fmt.Errorf("%d microseconds", n)
	}
	return time.Duration(n) * time.Microsecond, nil
}

// readLine reads a line of at most limit bytes and leaves its end out.
func readLine(in *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > limit {
			return nil, fmt.Errorf("a line of more than %d bytes", limit)
		}
		switch {
		case err == nil:
			return bytes.TrimSuffix(line, []byte{'\n'}), nil
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}
