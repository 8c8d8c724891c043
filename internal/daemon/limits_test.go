package daemon

import (
	"errors"
	"strconv"
	"testing"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/index"
)

func TestLimits(t *testing.T) {
	d := openDaemon(t, t.TempDir())
	one := &index.Image{Layers: make([]index.ImageLayer, 1)}
	d.making[&image{}] = true
	for i := range maxMounts - 1 {
		d.mounts[strconv.Itoa(i)] = &mounted{}
	}
	if err := d.checkLimits(one); err != nil {
		t.Error(err)
	}
	d.mounts["one more"] = &mounted{}
	var e *api.Error
	if err := d.checkLimits(one); !errors.As(err, &e) || e.Code != api.CodeLimit || e.Hint == "" {
		t.Errorf("a mount too many: %v", err)
	}
	for _, c := range []struct {
		used, more int
		files      int64
		ok         bool
	}{
		{0, 127, 65536, true}, {16000, 127, 65536, true}, {16300, 127, 65536, false},
		{0, 127, 1024, true}, {200, 127, 1024, false}, {0, 1, 0, false},
	} {
		if err := checkLayers(c.used, c.more, c.files); (err == nil) != c.ok {
			t.Errorf("%d layers and %d more of %d files: %v", c.used, c.more, c.files, err)
		}
	}
}
