package index

import (
	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/trace"
)

// Files returns where the files of the image lie in its layers.
func (m *Image) Files() (*trace.Files, error) {
	files, err := m.ListFiles()
	if err != nil {
		return nil, err
	}
	return trace.NewFiles(files), nil
}

// ListFiles lists the regular files of the image, by path; one with several names is
// there with each.
func (m *Image) ListFiles() ([]trace.File, error) {
	b, err := m.Erofs()
	if err != nil {
		return nil, err
	}
	if err := m.CheckDevices(b); err != nil {
		return nil, err
	}
	img, err := erofs.Open(b)
	if err != nil {
		return nil, err
	}
	var files []trace.File
	err = img.Walk(func(path string, info *erofs.Info) error {
		if info.Mode&erofs.ModeType != erofs.ModeRegular {
			return nil
		}
		f := trace.File{Path: path}
		for _, e := range info.Extents {
			f.Extents = append(f.Extents, trace.Extent{In: e.Offset, Layer: m.Layers[e.Device-1].Blob, Offset: e.OffsetDevice, Length: e.Length})
		}
		files = append(files, f)
		return nil
	})
	return files, err
}
