package index

import (
	"bytes"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/trace"
)

// TestFiles: a trace that is carried over to an image whose files moved names
// the same bytes there.
func TestFiles(t *testing.T) {
	content := func(seed byte, n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = seed + byte(i/512)*7
		}
		return b
	}
	lib, app, main := content(1, 9000), content(2, 5000), content(3, 3000)
	base := new(layertartest.Builder).Dir("usr").File("usr/lib", lib).File("usr/old", app).End().Bytes()
	before := [][]byte{base, new(layertartest.Builder).Dir("app").File("app/x", app).File("app/main", main).End().Bytes()}
	after := [][]byte{
		base,
		new(layertartest.Builder).Dir("app").File("app/more", content(9, 20000)).File("app/main", main).File("app/x", app).Hardlink("app/again", "app/x").End().Bytes(),
		new(layertartest.Builder).Whiteout("usr/old").End().Bytes(),
	}
	files := func(tars [][]byte) *trace.Files {
		t.Helper()
		head, err := Assemble(blobsOf(t, tars))
		if err != nil {
			t.Fatal(err)
		}
		f, err := head.Files()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	old, recent := files(before), files(after)
	at := func(tar, data []byte, n int) trace.Access {
		return trace.Access{Layer: digest.FromBytes(tar), Offset: int64(bytes.Index(tar, data[:1024])), Length: int64(n), At: time.Second, Phase: trace.PhaseReady}
	}
	tr := &trace.Trace{Version: trace.Version, Image: digest.FromString("before"), Runs: 1,
		Accesses: []trace.Access{at(before[1], main, 3000), at(base, lib, 4096), at(base, app, 5000), at(before[1], app, 1024)}}
	if parts := old.Split(tr.Accesses[0].Layer, tr.Accesses[0].Offset, 3000); len(parts) != 1 || parts[0].Path != "app/main" || parts[0].In != 0 {
		t.Errorf("parts %+v", parts)
	}
	got := trace.Map(tr, digest.FromString("after"), old, recent)
	has := func(tar, data []byte, n int) bool {
		want := at(tar, data, n)
		for _, a := range got.Accesses {
			if a.Layer == want.Layer && a.Offset <= want.Offset && a.Offset+a.Length >= want.Offset+want.Length {
				return true
			}
		}
		return false
	}
	if !has(after[1], main, 3000) || !has(base, lib, 4096) || !has(after[1], app, 1024) {
		t.Errorf("mapped: %+v", got.Accesses)
	}
	if has(base, app, 5000) {
		t.Error("a file that was deleted is in the trace")
	}
	if got.Accesses[0].Layer != digest.FromBytes(after[1]) {
		t.Errorf("another order: %+v", got.Accesses)
	}
}
