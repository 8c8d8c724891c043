package report

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
)

func TestPage(t *testing.T) {
	dir := t.TempDir()
	if d := os.Getenv("REPORT_OUT"); d != "" {
		dir = d
	}
	for name, r := range map[string]*profile.Record{"three": profiletest.Record(1), "python": profiletest.Modes(2, profiletest.PythonML), "nginx": profiletest.Modes(3, profiletest.Nginx), "sparse": sparse(), "failed": failed(), "hostile": hostile()} {
		var b bytes.Buffer
		if err := Write(&b, []profile.Record{*r}, Options{}); err != nil {
			t.Fatal(err)
		}
		if b.Len() > 1<<20 {
			t.Errorf("%s: %d bytes", name, b.Len())
		}
		if err := os.WriteFile(filepath.Join(dir, name+".html"), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := WriteLive(&b, "node1", "1.0.0", fleet()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "live.html"), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
