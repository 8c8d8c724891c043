package lab

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// bodyWriter counts an answer's body and breaks it as the faults say.
type bodyWriter struct {
	http.ResponseWriter
	server *Server
	r      *http.Request
	req    request
	faults *picked

	noRanges bool
	wrote    bool  // the header
	sent     int64 // bytes of the body
	offset   int64 // of the body in the blob
	end      int64 // where short cuts the body; -1 nowhere
	reset    *activeFault
	stall    *activeFault
	flip     *activeFault
	flips    int // writes with an inverted byte
}

func newBodyWriter(w http.ResponseWriter, s *Server, r *http.Request, req request, faults *picked) *bodyWriter {
	return &bodyWriter{
		ResponseWriter: w, server: s, r: r, req: req, faults: faults, end: -1,
		reset: faults.get(Reset), stall: faults.get(Stall), flip: faults.get(Flip),
	}
}

// WriteHeader implements [http.ResponseWriter].
func (w *bodyWriter) WriteHeader(status int) {
	w.wrote = true
	h := w.Header()
	if w.noRanges {
		h.Del("Accept-Ranges")
	}
	var last, size int64
	if _, err := fmt.Sscanf(h.Get("Content-Range"), "bytes %d-%d/%d", &w.offset, &last, &size); err != nil {
		w.offset = 0
	}
	if short := w.faults.get(Short); short != nil {
		if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil {
			w.end = max(0, n-short.sizeBytes)
			w.injected(short)
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements [io.Writer]. It does not return from a reset.
func (w *bodyWriter) Write(p []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	given := len(p)
	if w.end >= 0 {
		p = p[:max(0, min(int64(len(p)), w.end-w.sent))]
	}
	if w.flip != nil {
		p = w.flipped(p)
	}
	for {
		event := w.nextEvent(int64(len(p)))
		if event == nil {
			break
		}
		n, err := w.pass(p[:event.sizeBytes-w.sent])
		if err != nil {
			return n, err
		}
		p = p[n:]
		w.happen(event)
	}
	if _, err := w.pass(p); err != nil {
		return 0, err
	}
	return given, nil // what short cut off counts as written
}

func (w *bodyWriter) pass(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := w.ResponseWriter.Write(p)
	w.count(int64(n))
	return n, err
}

func (w *bodyWriter) count(n int64) {
	w.sent += n
	w.server.stats.add(w.req.kind, w.req.digest, 0, n)
}

func (w *bodyWriter) injected(a *activeFault) { w.server.stats.fault(a.Kind) }

// ReadFrom implements [io.ReaderFrom]: a body without faults goes from the file
// to the socket without a copy.
func (w *bodyWriter) ReadFrom(r io.Reader) (int64, error) {
	limited, ok := r.(*io.LimitedReader)
	inner, can := w.ResponseWriter.(io.ReaderFrom)
	if !ok || !can || w.end >= 0 || w.reset != nil || w.stall != nil || w.flip != nil {
		return io.Copy(struct{ io.Writer }{w}, r)
	}
	var total int64
	for limited.N > 0 {
		part := min(limited.N, 1<<20) // so that counts are not far behind
		n, err := inner.ReadFrom(&io.LimitedReader{R: limited.R, N: part})
		limited.N -= n
		total += n
		w.count(n)
		if err != nil || n < part {
			return total, err
		}
	}
	return total, nil
}

// nextEvent returns the first reset or stall within the next n bytes.
func (w *bodyWriter) nextEvent(n int64) *activeFault {
	var next *activeFault
	for _, a := range []*activeFault{w.reset, w.stall} {
		if a == nil || a.sizeBytes < w.sent || a.sizeBytes >= w.sent+n {
			continue
		}
		if next == nil || a.sizeBytes < next.sizeBytes {
			next = a
		}
	}
	return next
}

func (w *bodyWriter) happen(a *activeFault) {
	_ = http.NewResponseController(w.ResponseWriter).Flush() // the client may be gone, which is as well
	w.injected(a)
	if a.Kind == Reset {
		w.abort()
	}
	w.stall = nil
	w.server.pause(w.r, a.wait)
}

// abort ends the connection, and with it the handler.
func (w *bodyWriter) abort() {
	if c := connOf(w.r); c != nil {
		c.abort()
	}
	panic(http.ErrAbortHandler)
}

// pause waits for d, without one for the client or the server to give up.
func (s *Server) pause(r *http.Request, d time.Duration) {
	var over <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-over:
	case <-r.Context().Done():
	case <-s.done:
	}
}

// flipped returns p with the bytes inverted that the fault names.
func (w *bodyWriter) flipped(p []byte) []byte {
	var at []int64 // in the body
	switch a := w.flip; {
	case a.nth > 0:
		for i := (w.sent/a.nth+1)*a.nth - 1; i < w.sent+int64(len(p)); i += a.nth {
			at = append(at, i)
		}
	case a.inBlob:
		at = append(at, a.sizeBytes-w.offset)
	default:
		at = append(at, a.sizeBytes)
	}
	var out []byte
	for _, i := range at {
		if i -= w.sent; i < 0 || i >= int64(len(p)) {
			continue
		}
		if out == nil {
			out = slices.Clone(p)
			if w.flips++; w.flips == 1 {
				w.injected(w.flip)
			}
		}
		out[i] ^= 0xff
	}
	if out == nil {
		return p
	}
	return out
}
