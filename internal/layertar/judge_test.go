package layertar_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/layertar"
)

// countingReader tells how far archive/tar has read. It reads no further than it has
// to, so after Next the count is where the data starts.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// judged is one entry as archive/tar sees it.
type judged struct {
	layertar.Entry
	raw       string // the name as it is in the tar
	data      []byte
	dataKnown bool
}

// judge reads a tar with archive/tar. Data of files up to maxData is kept.
func judge(r io.Reader, maxData int64) ([]judged, error) {
	var all []judged
	c := &countingReader{r: r}
	for tr := tar.NewReader(c); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		j := judged{raw: h.Name, Entry: layertar.Entry{
			Path: strings.TrimPrefix(path.Clean("/"+h.Name), "/"),
			Mode: uint32(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid),
			ModTimeSec: h.ModTime.Unix(), ModTimeNsec: uint32(h.ModTime.Nanosecond()),
		}}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
			j.Type, j.SizeBytes, j.OffsetTar = layertar.TypeReg, h.Size, c.n
			if h.Size <= maxData {
				if j.data, err = io.ReadAll(tr); err != nil {
					return all, err
				}
				j.dataKnown = true
			}
		case tar.TypeDir:
			j.Type = layertar.TypeDir
		case tar.TypeSymlink:
			j.Type, j.Link, j.Mode = layertar.TypeSymlink, h.Linkname, 0o777
		case tar.TypeLink:
			j.Type, j.Link = layertar.TypeHardlink, strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
		case tar.TypeChar, tar.TypeBlock:
			j.Type = layertar.TypeBlock
			if h.Typeflag == tar.TypeChar {
				j.Type = layertar.TypeChar
			}
			j.DevMajor, j.DevMinor = uint32(h.Devmajor), uint32(h.Devminor)
		case tar.TypeFifo:
			j.Type = layertar.TypeFifo
		default:
			return all, fmt.Errorf("type %q", h.Typeflag)
		}
		for key, value := range h.PAXRecords {
			if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok && settable(name, j.Type) {
				j.Xattrs = append(j.Xattrs, layertar.Xattr{Name: name, Value: []byte(value)})
			}
		}
		slices.SortFunc(j.Xattrs, func(a, b layertar.Xattr) int { return cmp.Compare(a.Name, b.Name) })
		all = append(all, whiteoutOf(j)...)
	}
}

func settable(name string, t layertar.Type) bool {
	if strings.HasPrefix(name, "user.") {
		return t != layertar.TypeSymlink && t != layertar.TypeChar && t != layertar.TypeBlock && t != layertar.TypeFifo && name != "user."
	}
	if strings.HasPrefix(name, "system.posix_acl_") {
		return t != layertar.TypeSymlink && (name == "system.posix_acl_access" || name == "system.posix_acl_default")
	}
	return strings.HasPrefix(name, "trusted.") && name != "trusted." || strings.HasPrefix(name, "security.") && name != "security."
}

func whiteoutOf(j judged) []judged {
	dir, base := path.Split(j.Path)
	switch {
	case strings.HasPrefix(j.Path, ".wh..wh.") && j.Path != ".wh..wh..opq":
		return nil
	case base == ".wh..wh..opq":
		return []judged{{raw: j.raw, Entry: layertar.Entry{Type: layertar.TypeOpaque, Path: strings.TrimSuffix(dir, "/")}}}
	case strings.HasPrefix(base, ".wh..wh."):
		return nil
	case strings.HasPrefix(base, ".wh."):
		return []judged{{raw: j.raw, Entry: layertar.Entry{Type: layertar.TypeWhiteout, Path: dir + base[len(".wh."):]}}}
	}
	return []judged{j}
}

// sameAsJudge compares our entries, and the bytes they point to in the tar, with
// archive/tar's.
func sameAsJudge(t *testing.T, raw []byte, got []layertar.Entry, want []judged) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d entries, archive/tar has %d", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		g, w := got[i], want[i]
		if w.dataKnown {
			if data := fileData(raw, &g); !bytes.Equal(data, w.data) {
				t.Errorf("%q: data differs: %d bytes, want %d", g.Path, len(data), len(w.data))
			}
		}
		if g.OffsetHeader%512 != 0 || g.OffsetTar%512 != 0 {
			t.Errorf("%q: offsets %d and %d are not aligned", g.Path, g.OffsetHeader, g.OffsetTar)
		}
		// archive/tar knows neither LIBARCHIVE.xattr nor where headers and sparse parts are.
		g.Xattrs = slices.DeleteFunc(slices.Clone(g.Xattrs), func(x layertar.Xattr) bool { return strings.HasPrefix(x.Name, "user.lib") })
		if len(g.Xattrs) == 0 {
			g.Xattrs = nil
		}
		g.Segments, g.OffsetHeader = nil, 0
		if !reflect.DeepEqual(w.Entry, g) { // Diff is slow, and layers are large
			diff := gocmp.Diff(w.Entry, g)
			t.Errorf("entry %d, %q (-archive/tar +ours):\n%s", i, w.raw, diff)
		}
	}
}

// fileData reads a file in place from the tar.
func fileData(raw []byte, e *layertar.Entry) []byte {
	data := make([]byte, e.SizeBytes)
	if e.Segments == nil {
		copy(data, raw[min(e.OffsetTar, int64(len(raw))):])
		return data
	}
	for _, s := range e.Segments {
		copy(data[s.Offset:s.Offset+s.Length], raw[min(s.OffsetTar, int64(len(raw))):])
	}
	return data
}

// scan is ReadAll in writes of n bytes.
func scan(raw []byte, n int, limits layertar.Limits) ([]layertar.Entry, error) {
	var all []layertar.Entry
	s := layertar.NewScanner(limits, func(e layertar.Entry) error {
		all = append(all, e)
		return nil
	})
	for len(raw) > 0 {
		k := min(n, len(raw))
		if w, err := s.Write(raw[:k]); err != nil {
			return all, err
		} else if w != k {
			return all, errors.New("short write without an error")
		}
		raw = raw[k:]
	}
	return all, s.Close()
}
