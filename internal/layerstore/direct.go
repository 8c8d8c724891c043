package layerstore

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// directFromBytes is how large, compressed, a layer is of which most is expected
	// not to be read soon.
	directFromBytes = 64 << 20
	directBytes     = 1 << 20 // of one write
	directWriters   = 2       // at once, so that the disk does not idle between two
	directBuffers   = 6
)

// directWriter writes whole directBytes of a layer past the page cache, as fast as
// the disk takes them. Of a large layer most is never read: memory for
// all of it costs more than the disk does, above all in a virtual machine whose host
// gives out each page when it is first touched.
type directWriter struct {
	cached *os.File // what it falls back to
	direct *os.File
	memory []byte // the buffers, which have to begin with a page
	free   chan []byte
	full   chan directWrite
	wg     sync.WaitGroup
	failed atomic.Pointer[directError]
}

type directWrite struct {
	data []byte
	off  int64
}

// directError is the first write that failed.
type directError struct {
	off int64
	err error
}

// newDirectWriter returns nil where the file system has no such writes.
func newDirectWriter(dir string, cached *os.File) *directWriter {
	f, err := os.OpenFile(filepath.Join(dir, tarName), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil
	}
	memory, err := unix.Mmap(-1, 0, directBuffers*directBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		f.Close()
		return nil
	}
	w := &directWriter{
		cached: cached, direct: f, memory: memory,
		free: make(chan []byte, directBuffers), full: make(chan directWrite, directBuffers),
	}
	for rest := memory; len(rest) > 0; rest = rest[directBytes:] {
		w.free <- rest[:directBytes:directBytes]
	}
	for range directWriters {
		w.wg.Go(w.run)
	}
	return w
}

// run writes until close.
func (w *directWriter) run() {
	f := w.direct
	for d := range w.full {
		_, err := f.WriteAt(d.data, d.off)
		if err != nil && f != w.cached {
			f = w.cached // it asks for other sizes, or says what is wrong in its own way
			_, err = f.WriteAt(d.data, d.off)
		}
		if err != nil {
			w.failed.CompareAndSwap(nil, &directError{d.off, err})
		}
		w.free <- d.data
	}
}

// offer has p, directBytes, written at a multiple of that, unless the disk
// is behind. An error comes with a later call or with close.
func (w *directWriter) offer(p []byte, off int64) bool {
	select {
	case b := <-w.free:
		copy(b, p)
		w.full <- directWrite{b, off}
		return true
	default:
		return false
	}
}

// close waits for all writes.
func (w *directWriter) close() {
	close(w.full)
	w.wg.Wait()
	w.direct.Close()          // written through: there is nothing left to fail
	_ = unix.Munmap(w.memory) // it is ours
}
