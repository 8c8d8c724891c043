package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/config"
	"github.com/thaw-project/thaw/internal/daemon/api"
)

// imageFlags are the flags of all commands that take an image.
type imageFlags struct {
	index     string
	pull      string
	plainHTTP bool
}

func (f *imageFlags) request(image string) api.ImageRequest {
	r := api.ImageRequest{Image: absLayout(image), Index: f.index, Pull: f.pull, PlainHTTP: f.plainHTTP}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		r.DockerConfig, _ = filepath.Abs(dir)
	} else if home, err := os.UserHomeDir(); err == nil {
		r.DockerConfig = filepath.Join(home, ".docker")
	}
	return r
}

func (f *imageFlags) bind(cmd *cobra.Command, pull string) {
	cmd.Flags().StringVar(&f.index, "index", api.IndexAuto, "the image's index: auto (make one where there is none), require, push (and push what was made), ignore")
	cmd.Flags().StringVar(&f.pull, "pull", pull, "when to ask the registry what a name means: missing, always, never")
	cmd.Flags().BoolVar(&f.plainHTTP, "plain-http", false, "speak plain http to the image's registry")
	complete(cmd, "index", api.IndexAuto, api.IndexRequire, api.IndexPush, api.IndexIgnore)
	complete(cmd, "pull", api.PullMissing, api.PullAlways, api.PullNever)
}

func (f *imageFlags) check() error {
	switch f.index {
	case api.IndexAuto, api.IndexRequire, api.IndexPush, api.IndexIgnore:
	default:
		return usageError{fmt.Errorf("--index %q: use auto, require, push or ignore", f.index)}
	}
	switch f.pull {
	case api.PullMissing, api.PullAlways, api.PullNever:
	default:
		return usageError{fmt.Errorf("--pull %q: use missing, always or never", f.pull)}
	}
	return nil
}

// mountFlags are the flags of commands that mount.
type mountFlags struct {
	imageFlags
	mode       string
	background string
}

func (f *mountFlags) bind(cmd *cobra.Command) {
	f.imageFlags.bind(cmd, api.PullMissing)
	cmd.Flags().StringVar(&f.mode, "mount", api.ModeAuto, "how to mount: auto, fanotify, fuse, or eager (bring the whole image first)")
	cmd.Flags().StringVar(&f.background, "background", "", "background hydration: off, or bytes a second such as 20MB (default no limit)")
	complete(cmd, "mount", api.ModeAuto, api.ModeFanotify, api.ModeFUSE, api.ModeEager)
}

func (f *mountFlags) mountRequest(image string) (api.MountRequest, error) {
	if err := f.check(); err != nil {
		return api.MountRequest{}, err
	}
	rate, err := config.ParseRate(f.background)
	if err != nil {
		return api.MountRequest{}, usageError{err}
	}
	return api.MountRequest{ImageRequest: f.request(image), Mode: f.mode, Background: rate, Traceparent: os.Getenv("TRACEPARENT")}, nil
}

// absLayout makes the directory of an oci: reference absolute: the daemon is
// somewhere else.
func absLayout(image string) string {
	const prefix = "oci:"
	if len(image) <= len(prefix) || image[:len(prefix)] != prefix || image[len(prefix)] == '/' {
		return image
	}
	wd, err := os.Getwd()
	if err != nil {
		return image
	}
	return prefix + filepath.Clean(wd) + "/" + image[len(prefix):]
}
