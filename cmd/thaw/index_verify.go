package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"text/tabwriter"

	"github.com/docker/go-units"
	digest "github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/indexer"
)

func newIndexInspectCommand(g *globalOptions) *cobra.Command {
	var asJSON, plainHTTP bool
	cmd := &cobra.Command{
		Use:   "inspect IMAGE|FILE",
		Short: "Say what is in an image's index, or in a file that holds an index blob",
		Args:  exactArgs("IMAGE|FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := g.inspect(cmd.Context(), args[0], plainHTTP)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, in)
			}
			return in.print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&plainHTTP, "plain-http", false, "speak plain http to the image's registry")
	return cmd
}

// inspected is what index inspect prints.
type inspected struct {
	Image      string           `json:"image,omitempty"`
	Index      digest.Digest    `json:"index,omitempty"`
	Where      string           `json:"where"`
	HeadBytes  int64            `json:"headBytes,omitempty"`
	ErofsBytes int64            `json:"erofsBytes,omitempty"`
	Layers     []inspectedLayer `json:"layers"`
	Bundle     *inspectedBundle `json:"bundle,omitempty"`
}

type inspectedLayer struct {
	Blob       digest.Digest `json:"blob"`
	DiffID     digest.Digest `json:"diffID"`
	Format     string        `json:"format"`
	BlobBytes  int64         `json:"blobBytes"`
	TarBytes   int64         `json:"tarBytes"`
	Entries    int64         `json:"entries"`
	Spans      int           `json:"spans"`
	IndexBytes int64         `json:"indexBytes"`
	Windows    int64         `json:"windowBytes"`
}

func (g *globalOptions) inspect(ctx context.Context, name string, plainHTTP bool) (*inspected, error) {
	if b, err := os.ReadFile(name); err == nil {
		return inspectFile(name, b)
	}
	t, err := g.indexTask(ctx, name, plainHTTP)
	if err != nil {
		return nil, err
	}
	defer t.client.Close()
	f, err := t.find(ctx)
	if err != nil {
		return nil, err
	}
	m, err := index.DecodeImage(f.head)
	if err != nil {
		return nil, err
	}
	in := inspectHead(m, f.head)
	in.Image, in.Index, in.Where = t.img.Reference.String(), f.digest, f.where
	h, body, err := t.openBundle(ctx, f)
	if err != nil || h == nil {
		return in, err
	}
	body.Close()
	in.Bundle = &inspectedBundle{Bytes: h.Bytes, UnpackedBytes: h.RawBytes(), Pieces: len(h.Pieces), Frames: len(h.Frames), ReadyMs: milliseconds(h.Ready)}
	return in, nil
}

// inspectedBundle is what index inspect says of a start-up bundle.
type inspectedBundle struct {
	Bytes         int64   `json:"bytes"`
	UnpackedBytes int64   `json:"unpackedBytes"`
	Pieces        int     `json:"pieces"`
	Frames        int     `json:"frames"`
	ReadyMs       float64 `json:"readyMs"` // of the recorded start; 0: not known
}

// inspectFile reads a file that holds the head of an image's index, or the
// index of a layer.
func inspectFile(name string, b []byte) (*inspected, error) {
	m, err := index.DecodeImage(b)
	if err == nil {
		in := inspectHead(m, b)
		in.Where = name
		return in, nil
	}
	l, lerr := index.DecodeLayer(b)
	if lerr != nil {
		return nil, fmt.Errorf("%s is neither the head of an index (%w) nor a layer's (%w)", name, err, lerr)
	}
	return &inspected{Where: name, Layers: []inspectedLayer{{l.Blob, l.DiffID, l.Format.String(), l.BlobBytes, l.TarBytes,
		int64(len(l.Entries)), len(l.Spans), int64(len(b)), int64(len(l.Windows))}}}, nil
}

func inspectHead(m *index.Image, head []byte) *inspected {
	in := &inspected{HeadBytes: int64(len(head)), ErofsBytes: m.ErofsBytes}
	for _, l := range m.Layers {
		in.Layers = append(in.Layers, inspectedLayer{l.Blob, l.DiffID, l.Format.String(), l.BlobBytes, l.TarBytes, l.Entries,
			len(l.Spans), l.IndexBytes, l.BytesWindows})
	}
	return in
}

func (in *inspected) print(w io.Writer) error {
	if in.Image != "" {
		fmt.Fprintf(w, "image  %s\nindex  %s (%s)\n", in.Image, in.Index, in.Where)
	}
	if in.HeadBytes > 0 {
		fmt.Fprintf(w, "head   %s, EROFS metadata %s unpacked\n", units.HumanSize(float64(in.HeadBytes)), units.HumanSize(float64(in.ErofsBytes)))
	}
	if b := in.Bundle; b != nil {
		fmt.Fprintf(w, "bundle %s, %s of layers unpacked, in %d pieces\n", units.HumanSize(float64(b.Bytes)), units.HumanSize(float64(b.UnpackedBytes)), b.Pieces)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "LAYER\tFORMAT\tCOMPRESSED\tUNPACKED\tENTRIES\tSPANS\tINDEX\tWINDOWS")
	for _, l := range in.Layers {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", l.Blob, l.Format, units.HumanSize(float64(l.BlobBytes)),
			units.HumanSize(float64(l.TarBytes)), l.Entries, l.Spans, units.HumanSize(float64(l.IndexBytes)), units.HumanSize(float64(l.Windows)))
	}
	return tw.Flush()
}

func newIndexVerifyCommand(g *globalOptions) *cobra.Command {
	var plainHTTP bool
	cmd := &cobra.Command{
		Use:   "verify IMAGE | verify FILE IMAGE",
		Short: "Check an image's index against the image's layers, byte for byte",
		Long: `Check an image's index, or a file that holds the head of it or the index of one
of its layers, against the image's layers: every layer is read whole, its digests
are proven, each span and each file's metadata is compared with the index, and each
access point is decoded from.

Exit codes: 0 the index is right, 1 it is not, or it could not be checked, 2 wrong usage.`,
		Example: `  thaw index verify registry.example.com/app:1.2
  thaw index verify head.bin registry.example.com/app:1.2`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 || len(args) == 2 {
				return nil
			}
			return usageError{errors.New("want IMAGE, or FILE IMAGE; see thaw index verify --help")}
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runIndexVerify(cmd, g, args, plainHTTP) },
	}
	cmd.Flags().BoolVar(&plainHTTP, "plain-http", false, "speak plain http to the image's registry")
	return cmd
}

func runIndexVerify(cmd *cobra.Command, g *globalOptions, args []string, plainHTTP bool) error {
	image := args[len(args)-1]
	if _, err := os.Stat(image); err == nil && len(args) == 1 {
		return usageError{fmt.Errorf("%s is a file: name the image that it is about as well", image)}
	}
	t, err := g.indexTask(cmd.Context(), image, plainHTTP)
	if err != nil {
		return err
	}
	defer t.client.Close()
	var f *foundIndex
	if len(args) == 2 {
		b, err := os.ReadFile(args[0])
		if err != nil {
			return fmt.Errorf("read index: %w", err)
		}
		f = &foundIndex{where: args[0], digest: digest.FromBytes(b), head: b}
	} else if f, err = t.find(cmd.Context()); err != nil {
		return err
	}
	what, err := t.verify(cmd.Context(), f, newProgress(cmd.ErrOrStderr(), image))
	if err != nil {
		return fmt.Errorf("index %s (%s) of %s: %w", f.digest, f.where, t.img.Reference, err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: index %s (%s) matches %s\n", t.img.Reference, f.digest, f.where, what)
	return nil
}

// sameMeaning is said of an index that is right but not byte for byte ours.
const sameMeaning = ", though another version of thaw made it"

// verify makes the index anew and compares. It returns what the index matches.
func (t *indexTask) verify(ctx context.Context, f *foundIndex, p *progress) (what string, err error) {
	if l, err := index.DecodeLayer(f.head); err == nil {
		return t.verifyLayer(ctx, f, l)
	}
	m, err := index.DecodeImage(f.head)
	if err != nil {
		return "", err
	}
	metadata, err := m.Erofs()
	if err != nil {
		return "", err
	}
	if err := m.CheckDevices(metadata); err != nil {
		return "", err
	}
	made, err := t.build(ctx, true, p)
	if err != nil {
		return "", err
	}
	bundle, err := t.verifyBundle(ctx, f, made)
	if err != nil {
		return "", err
	}
	all := fmt.Sprintf("all %d layers%s", len(made.Image.Layers), bundle)
	if bytes.Equal(f.head, made.Artifact.Head) {
		return all, nil // the same bytes, down to the last window
	}
	if len(m.Layers) != len(made.Image.Layers) {
		return "", fmt.Errorf("it has %d layers, the image %d", len(m.Layers), len(made.Image.Layers))
	}
	for i := range m.Layers {
		if err := compareLayer(&m.Layers[i], &made.Image.Layers[i]); err != nil {
			return "", err
		}
	}
	if m.ErofsDigest != made.Image.ErofsDigest {
		return "", errors.New("its EROFS metadata describes other files than the layers hold")
	}
	return all + sameMeaning, nil
}

// verifyLayer compares the index of one layer.
func (t *indexTask) verifyLayer(ctx context.Context, f *foundIndex, l *index.Layer) (string, error) {
	for _, il := range t.img.Layers {
		if il.Digest != l.Blob {
			continue
		}
		made, err := indexer.Layer(ctx, t.repo, il, indexer.Sink{})
		if err != nil {
			return "", err
		}
		name := "layer " + l.Blob.String()
		if made.Digest == f.digest {
			return name, nil
		}
		have, want := &index.ImageLayer{LayerMeta: l.LayerMeta, Spans: l.Spans}, &index.ImageLayer{LayerMeta: made.LayerMeta, Spans: made.Spans}
		if err := compareLayer(have, want); err != nil {
			return "", err
		}
		if !reflect.DeepEqual(l.Entries, made.Layer.Entries) {
			return "", errors.New("it describes other files than the layer holds")
		}
		return name + sameMeaning, nil
	}
	return "", fmt.Errorf("it is about layer %s, which the image does not have", l.Blob)
}

func compareLayer(have, want *index.ImageLayer) error {
	if have.Blob != want.Blob || have.DiffID != want.DiffID || have.TarBytes != want.TarBytes {
		return fmt.Errorf("layer %s (%s, %d bytes) should be %s (%s, %d bytes)", have.Blob, have.DiffID, have.TarBytes, want.Blob, want.DiffID, want.TarBytes)
	}
	for i := range want.Spans {
		h, w := have.Spans[i], want.Spans[i]
		if h.Digest != w.Digest {
			return &index.SpanError{Layer: want.Blob.String(), Span: i, Err: fmt.Errorf("digest is %x, the layer has %x", h.Digest, w.Digest)}
		}
		if h.OffsetCompressed != w.OffsetCompressed || h.Kind != w.Kind {
			return &index.SpanError{Layer: want.Blob.String(), Span: i, Err: fmt.Errorf("access point at byte %d, should be %d", h.OffsetCompressed, w.OffsetCompressed)}
		}
	}
	return nil
}
