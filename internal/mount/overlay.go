package mount

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// OverlaySpec is a writable view of a read-only tree.
type OverlaySpec struct {
	// Lower are the read-only trees, the uppermost first; at least one.
	Lower []string
	// Upper gets the writes, Work is empty and on the same file system. Both empty: a read-only overlay (of two or more Lower).
	Upper, Work string
	// Dir is the directory to mount on.
	Dir string
	// Volatile skips all syncs to the upper: for one that is thrown away afterwards. It cannot be mounted again.
	Volatile bool
}

// Overlay mounts an overlay. With an upper a change of metadata (chmod, chown) copies up no data (metacopy), because
// that would hydrate the whole file. It needs trusted.overlay.* attributes in the upper's file system: not another overlay.
func Overlay(spec OverlaySpec) error {
	if err := overlay(spec); err != nil {
		return fmt.Errorf("mount overlay on %s: %w", spec.Dir, err)
	}
	return nil
}

func overlay(spec OverlaySpec) error {
	c, err := openContext("overlay")
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.setLower(spec.Lower); err != nil {
		return err
	}
	options := [][2]string{{"source", "thaw"}, {"index", "off"}, {"nfs_export", "off"}}
	attributes := unix.MOUNT_ATTR_RDONLY
	if spec.Upper != "" {
		attributes = 0
		// metacopy needs redirects: a renamed file must still find its data below.
		options = append(options, [2]string{"redirect_dir", "on"}, [2]string{"metacopy", "on"})
		if err := c.setPath("upperdir", spec.Upper); err != nil {
			return err
		}
		if err := c.setPath("workdir", spec.Work); err != nil {
			return err
		}
	}
	for _, option := range options {
		if err := c.set(option[0], option[1]); err != nil {
			return err
		}
	}
	if spec.Volatile && spec.Upper != "" {
		if err := c.flag("volatile"); err != nil {
			return err
		}
	}
	fd, err := c.mount(attributes)
	if err != nil {
		return err
	}
	return attach(fd, spec.Dir)
}

// setLower adds the lower directories one by one ("lowerdir+", Linux 6.7), or else as one list.
func (c *fsContext) setLower(lower []string) error {
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`)
	var list []string
	for _, dir := range lower {
		err := c.setPath("lowerdir+", dir)
		if errors.Is(err, unix.EINVAL) && len(list) == 0 && dir == lower[0] {
			for _, dir := range lower {
				list = append(list, escape.Replace(dir))
			}
			return c.set("lowerdir", strings.Join(list, ":"))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
