package layertar_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

// fuzzLimits keep a run small, and hold the scanner to them.
var fuzzLimits = layertar.Limits{Entries: 200, TotalBytes: 1 << 20, FileBytes: 1 << 22}

func FuzzScanner(f *testing.F) {
	for _, l := range layertartest.Everything()[1:] {
		f.Add(l, uint16(512))
	}
	for _, c := range layertartest.Hostile() {
		if len(c.Tar) < 16<<10 {
			f.Add(c.Tar, uint16(100))
		}
	}
	for _, version := range []string{"0.0", "0.1", "1.0"} {
		f.Add(new(layertartest.Builder).SparsePAX(version, "s", 4096, []layertartest.Part{{Offset: 1024, Data: make([]byte, 512)}}).End().Bytes(), uint16(1))
	}
	f.Fuzz(func(t *testing.T, raw []byte, chunk uint16) {
		if len(raw) > 1<<20 {
			return
		}
		fixChecksums(raw)
		got, err := scan(raw, int(chunk)+1, fuzzLimits)
		again, errAgain := scan(raw, max(1, len(raw)), fuzzLimits)
		if (err == nil) != (errAgain == nil) || gocmp.Diff(got, again) != "" {
			t.Fatalf("in pieces: %v, whole: %v\n%s", err, errAgain, gocmp.Diff(again, got))
		}
		sane(t, raw, got)
		var refused *layertar.EntryError
		if err != nil {
			if !errors.As(err, &refused) {
				t.Fatalf("error is %T: %v", err, err)
			}
			return
		}
		want, err := judge(bytes.NewReader(raw), 1<<22)
		if err != nil {
			return // we are as strict where it matters: see sane
		}
		// What only we know: LIBARCHIVE.xattr and .wh..wh.plnk.
		if bytes.Contains(raw, []byte("LIBARCHIVE")) || bytes.Contains(raw, []byte(".wh..wh.plnk")) {
			return
		}
		sameAsJudge(t, raw, got, want)
	})
}

// fixChecksums lets the fuzzer past the first check of every block.
func fixChecksums(raw []byte) {
	for ; len(raw) >= 512; raw = raw[512:] {
		if blk := (*[512]byte)(raw); bytes.Equal(blk[257:262], []byte("ustar")) {
			layertartest.Checksum(blk)
		}
	}
}

// sane checks what users rely on without a check of their own.
func sane(t *testing.T, raw []byte, entries []layertar.Entry) {
	t.Helper()
	if len(entries) > fuzzLimits.Entries {
		t.Fatalf("%d entries", len(entries))
	}
	for _, e := range entries {
		for name := range bytes.SplitSeq([]byte(e.Path), []byte("/")) {
			if n := string(name); n == "." || n == ".." || len(n) > 255 || bytes.IndexByte(name, 0) >= 0 || n == "" && e.Path != "" {
				t.Fatalf("path %q", e.Path)
			}
		}
		if e.Type == 0 || e.Mode&^0o7777 != 0 || e.ModTimeNsec >= 1e9 || e.SizeBytes < 0 || e.SizeBytes > fuzzLimits.FileBytes {
			t.Fatalf("entry %+v", e)
		}
		if e.OffsetHeader < 0 || e.OffsetHeader >= int64(len(raw)) || e.OffsetTar%512 != 0 || e.OffsetHeader%512 != 0 {
			t.Fatalf("offsets of %+v", e)
		}
		if !slices.IsSortedFunc(e.Xattrs, func(a, b layertar.Xattr) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) }) {
			t.Fatalf("xattrs of %+v", e)
		}
		var end int64
		for _, s := range e.Segments {
			if s.Offset < end || s.Length < 0 || s.Offset%512 != 0 || s.OffsetTar%512 != 0 || s.Offset+s.Length > e.SizeBytes || s.OffsetTar < e.OffsetTar {
				t.Fatalf("segments of %+v", e)
			}
			end = s.Offset + s.Length
		}
	}
}
