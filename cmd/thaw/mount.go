package main

import (
	"cmp"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

type mountOptions struct {
	mountFlags
	wait bool
	json bool
}

func newMountCommand(g *globalOptions) *cobra.Command {
	var opts mountOptions
	cmd := &cobra.Command{
		Use:   "mount IMAGE DIR",
		Short: "Mount an image's root read-only, lazily",
		Long: `Mount an image's root on a directory, read-only, nosuid and nodev. It is there as
soon as the image's metadata is; what is read is fetched when it is read, and the
rest in the background. It stays until thaw umount, also when the daemon ends.`,
		Example: `  thaw mount registry.example.com/app:1.2 /mnt/app
  thaw mount --wait --json registry.example.com/app:1.2 /mnt/app
  thaw umount /mnt/app`,
		Args: exactArgs("IMAGE", "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error { return runMount(cmd, g, &opts, args[0], args[1]) },
	}
	opts.bind(cmd)
	cmd.Flags().BoolVar(&opts.wait, "wait", false, "return when the whole image is here and proven")
	cmd.Flags().BoolVar(&opts.json, "json", false, "print the mount as JSON")
	return cmd
}

func runMount(cmd *cobra.Command, g *globalOptions, opts *mountOptions, image, dir string) error {
	req, err := opts.mountRequest(image)
	if err != nil {
		return err
	}
	if req.Dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	c, err := g.connect(cmd.Context())
	if err != nil {
		return err
	}
	p := newProgress(cmd.ErrOrStderr(), image)
	m, err := c.Mount(cmd.Context(), req, p.event)
	p.clear()
	if err != nil {
		return err
	}
	if opts.wait {
		if m, err = c.Hurry(cmd.Context(), m.ID); err != nil {
			return err
		}
		if !m.Stats.Complete {
			return api.Errorf("", "it stays mounted, and the daemon goes on trying: thaw daemon status", "%s is not complete: %s",
				m.Image, cmp.Or(m.Stats.Error, "it was unmounted"))
		}
	}
	if opts.json {
		return printJSON(cmd, m)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s\n", m.Dir)
	if m.ModeReason != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "thaw: warning: mounted %s: %s\n", m.Mode, m.ModeReason)
	}
	return nil
}

func newUmountCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use:     "umount DIR",
		Aliases: []string{"unmount"},
		Short:   "Take away what thaw mount has mounted",
		Args:    exactArgs("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			return c.Unmount(cmd.Context(), dir)
		},
	}
}
