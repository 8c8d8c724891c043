package lab

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
)

// blobStore is the layout's blobs, read-only, under a temporary directory of
// pushed ones. It is the library's blob handler for all but the GETs and HEADs
// of blobs, which the library answers without open-ended ranges.
type blobStore struct {
	layout string // blobs directory of the layout, may be empty
	pushed string
}

var (
	_ registry.BlobHandler     = (*blobStore)(nil)
	_ registry.BlobStatHandler = (*blobStore)(nil)
	_ registry.BlobPutHandler  = (*blobStore)(nil)
)

func newBlobStore(layout string) (*blobStore, error) {
	pushed, err := os.MkdirTemp("", "thaw-lab-")
	if err != nil {
		return nil, err
	}
	s := &blobStore{pushed: pushed}
	if layout != "" {
		s.layout = filepath.Join(layout, "blobs")
	}
	return s, nil
}

// open returns a blob's file, or registry.ErrNotFound.
func (s *blobStore) open(h ggcr.Hash) (*os.File, error) {
	f, err := os.Open(filepath.Join(s.pushed, h.Algorithm, h.Hex))
	if errors.Is(err, fs.ErrNotExist) && s.layout != "" {
		f, err = os.Open(filepath.Join(s.layout, h.Algorithm, h.Hex))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, registry.ErrNotFound
	}
	return f, err
}

// Get implements [registry.BlobHandler].
func (s *blobStore) Get(_ context.Context, _ string, h ggcr.Hash) (io.ReadCloser, error) {
	return s.open(h)
}

// Stat implements [registry.BlobStatHandler].
func (s *blobStore) Stat(_ context.Context, _ string, h ggcr.Hash) (int64, error) {
	f, err := s.open(h)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Put implements [registry.BlobPutHandler]; the library verifies rc as it is read.
func (s *blobStore) Put(_ context.Context, _ string, h ggcr.Hash, rc io.ReadCloser) error {
	dir := filepath.Join(s.pushed, h.Algorithm)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "upload-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := io.Copy(f, rc); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, h.Hex))
}

// warm reads all blobs into the page cache.
func (s *blobStore) warm(ctx context.Context) error {
	buf := make([]byte, 1<<20)
	for _, root := range []string{s.layout, s.pushed} {
		if root == "" {
			continue
		}
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			for {
				if err := ctx.Err(); err != nil {
					return err
				}
				if _, err := f.Read(buf); err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// serveBlob answers a GET or HEAD of a blob with any range.
func (s *Server) serveBlob(w *bodyWriter, r *http.Request, dgst string, faults *picked) {
	h, err := ggcr.NewHash(dgst)
	if err != nil {
		writeError(w, http.StatusBadRequest, "DIGEST_INVALID", err.Error())
		return
	}
	f, err := s.store.open(h)
	if errors.Is(err, registry.ErrNotFound) {
		writeError(w, http.StatusNotFound, "BLOB_UNKNOWN", "unknown blob "+dgst)
		return
	}
	if err != nil {
		writeError(w, http.StatusInternalServerError, "INTERNAL_SERVER_ERROR", err.Error())
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		writeError(w, http.StatusInternalServerError, "INTERNAL_SERVER_ERROR", err.Error())
		return
	}
	var content io.ReadSeeker = f
	r = r.Clone(r.Context())
	if wrong := faults.get(NoRanges); wrong != nil {
		w.injected(wrong)
		r.Header.Del("Range")
		w.noRanges = true
	}
	if wrong := faults.get(WrongRange); wrong != nil {
		w.injected(wrong)
		if wrong.lie {
			content = io.NewSectionReader(wrapAt{f, info.Size(), wrong.sizeBytes}, 0, info.Size())
		} else {
			shiftRange(r.Header, wrong.sizeBytes, info.Size())
		}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", dgst)
	w.Header().Set("Etag", strconv.Quote(dgst))
	http.ServeContent(w, r, "", info.ModTime(), content)
}

// wrapAt reads from shift further on than asked, starting over at the end.
type wrapAt struct {
	r           io.ReaderAt
	size, shift int64
}

func (a wrapAt) ReadAt(p []byte, off int64) (int, error) {
	total := 0
	for total < len(p) && off+int64(total) < a.size {
		at := (off + int64(total) + a.shift) % a.size
		part := p[total:]
		part = part[:min(int64(len(part)), a.size-at, a.size-off-int64(total))]
		n, err := a.r.ReadAt(part, at)
		total += n
		if n < len(part) {
			return total, err
		}
	}
	if total < len(p) {
		return total, io.EOF
	}
	return total, nil
}

// shiftRange moves a plain bytes=a-b range by shift, within the blob.
func shiftRange(h http.Header, shift, size int64) {
	spec, ok := strings.CutPrefix(h.Get("Range"), "bytes=")
	if !ok {
		return
	}
	from, to, _ := strings.Cut(spec, "-")
	a, err := strconv.ParseInt(from, 10, 64)
	if err != nil {
		return
	}
	b, err := strconv.ParseInt(to, 10, 64)
	if err != nil {
		b = size - 1
	}
	if b+shift >= size {
		shift = -min(shift, a)
	}
	h.Set("Range", "bytes="+strconv.FormatInt(a+shift, 10)+"-"+strconv.FormatInt(b+shift, 10))
}
