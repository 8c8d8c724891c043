package daemon

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/trace"
	"github.com/thaw-project/thaw/internal/tracestore"
)

// describeTrace says a merged trace in numbers.
func describeTrace(k tracestore.Key, t *trace.Trace) api.TraceInfo {
	return api.TraceInfo{ID: k.ID(), Image: t.Reference, Manifest: t.Image, Command: append([]string{}, t.Command...), Runs: t.Runs,
		Accesses: len(t.Accesses), Bytes: t.Bytes(), Ready: t.Ready, Created: t.Created}
}

// allTraces returns the merged traces of this node that want asks for, newest first.
func (d *Daemon) allTraces(want func(tracestore.Key, *trace.Trace) bool) ([]tracestore.Key, []*trace.Trace, error) {
	keys, err := d.traces.List()
	if err != nil {
		return nil, nil, err
	}
	merged := map[tracestore.Key]*trace.Trace{}
	for _, k := range keys {
		t, err := d.traces.Merged(k)
		if errors.Is(err, tracestore.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if want(k, t) {
			merged[k] = t
		}
	}
	keys = slices.DeleteFunc(keys, func(k tracestore.Key) bool { return merged[k] == nil })
	slices.SortStableFunc(keys, func(a, b tracestore.Key) int { return merged[b].Created.Compare(merged[a].Created) })
	traces := make([]*trace.Trace, len(keys))
	for i, k := range keys {
		traces[i] = merged[k]
	}
	return keys, traces, nil
}

// findTraces returns the traces with that ID, or of that image: what the
// reference names now, or else what it named when it was started.
func (d *Daemon) findTraces(name string) (keys []tracestore.Key, traces []*trace.Trace, err error) {
	wants := []func(tracestore.Key, *trace.Trace) bool{
		func(k tracestore.Key, _ *trace.Trace) bool { return k.ID() == name || k.Image.String() == name },
	}
	if ref, err := oci.ParseReference(name); err == nil {
		if known := d.knownImage(ref); known != nil {
			wants = append(wants, func(k tracestore.Key, _ *trace.Trace) bool { return k.Image == known.ManifestDescriptor.Digest })
		}
		wants = append(wants, func(_ tracestore.Key, t *trace.Trace) bool { return t.Reference == ref.String() })
	}
	for _, want := range wants {
		if keys, traces, err = d.allTraces(want); err != nil || len(keys) > 0 {
			return keys, traces, err
		}
	}
	return nil, nil, api.Errorf(api.CodeNotFound, "thaw trace ls lists what is here; thaw run records a start", "no start of %s was recorded on this node", name)
}

// findTrace returns the only one of them.
func (d *Daemon) findTrace(name string) (tracestore.Key, *trace.Trace, error) {
	keys, traces, err := d.findTraces(name)
	if err != nil {
		return tracestore.Key{}, nil, err
	}
	if len(keys) > 1 {
		var ids []string
		for i, k := range keys {
			ids = append(ids, fmt.Sprintf("%s (%s)", k.ID(), strings.Join(traces[i].Command, " ")))
		}
		return tracestore.Key{}, nil, api.Errorf(api.CodeInvalid, "name one by its ID: "+strings.Join(ids, ", "), "%s was started with %d commands", name, len(keys))
	}
	return keys[0], traces[0], nil
}

func (d *Daemon) serveTraces(w http.ResponseWriter, _ *http.Request) {
	keys, traces, err := d.allTraces(func(tracestore.Key, *trace.Trace) bool { return true })
	answer(w, describeTraces(keys, traces), err)
}

func describeTraces(keys []tracestore.Key, traces []*trace.Trace) []api.TraceInfo {
	infos := make([]api.TraceInfo, len(keys))
	for i, k := range keys {
		infos[i] = describeTrace(k, traces[i])
	}
	return infos
}

func (d *Daemon) serveTrace(w http.ResponseWriter, r *http.Request) {
	k, t, err := d.findTrace(r.URL.Query().Get("name"))
	if err != nil {
		writeError(w, err)
		return
	}
	answer(w, api.Trace{TraceInfo: describeTrace(k, t), Reads: resolveReads(t, d.filesOf(t.Image))}, nil)
}

// filesOf returns where an image's files lie. Without the image's index nothing
// is known of them, which is no error.
func (d *Daemon) filesOf(manifest digest.Digest) *trace.Files {
	im, err := d.indexes.Get(manifest)
	if err != nil {
		return trace.NewFiles(nil)
	}
	head, err := index.DecodeImage(im.Head)
	if err == nil {
		var files *trace.Files
		if files, err = head.Files(); err == nil {
			return files
		}
	}
	d.log.Warn("files of image cannot be listed", "manifest", manifest, "err", err)
	return trace.NewFiles(nil)
}

const pageBytes = 4096 // in which the kernel asks

// resolveReads says the reads of a trace as parts of files.
func resolveReads(t *trace.Trace, files *trace.Files) []api.TraceRead {
	reads := []api.TraceRead{}
	for _, a := range t.Accesses {
		parts := files.Split(a.Layer, a.Offset, a.Length)
		for _, p := range parts {
			// Headers of files, in the same pages.
			if p.Path == "" && p.Length < pageBytes && len(parts) > 1 {
				continue
			}
			r := api.TraceRead{Offset: p.In, Bytes: p.Length, Layer: a.Layer, Tar: p.Offset, At: a.At, Phase: a.Phase}
			if p.Path != "" {
				r.Path = "/" + p.Path
			}
			reads = append(reads, r)
		}
	}
	return reads
}

func (d *Daemon) serveTraceFile(w http.ResponseWriter, r *http.Request) {
	_, t, err := d.findTrace(r.URL.Query().Get("name"))
	if err != nil {
		writeError(w, err)
		return
	}
	if err := trace.Encode(w, t); err != nil {
		d.log.Error("send trace", "err", err)
	}
}

func (d *Daemon) serveRemoveTrace(w http.ResponseWriter, r *http.Request) {
	keys, traces, err := d.findTraces(r.URL.Query().Get("name"))
	for _, k := range keys {
		if err == nil {
			err = d.traces.Remove(k)
		}
	}
	answer(w, describeTraces(keys, traces), err)
}

// dropTraces forgets the traces of an image that was removed, unless it has
// another name here.
func (d *Daemon) dropTraces(manifest digest.Digest) error {
	for _, stored := range d.rememberedImages() {
		if stored != nil && stored.Digest == manifest {
			return nil
		}
	}
	return d.collectTraces(func(k tracestore.Key) bool { return k.Image == manifest })
}

// collectTraces removes the traces that remove is true of.
func (d *Daemon) collectTraces(remove func(tracestore.Key) bool) error {
	keys, err := d.traces.List()
	if err != nil {
		return err
	}
	for _, k := range keys {
		if !remove(k) {
			continue
		}
		if err := d.traces.Remove(k); err != nil {
			return err
		}
	}
	return nil
}
