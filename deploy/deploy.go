// Package deploy has the files that put thaw onto a host, for thaw install.
package deploy

import _ "embed"

// Unit is thaw.service; UnitContainerd is a drop-in for it, with @SOCKET@ in
// the place of the socket for containerd and @ROOT@ in that of the flag for
// another state directory.
var (
	//go:embed systemd/thaw.service
	Unit []byte
	//go:embed systemd/containerd.conf
	UnitContainerd []byte
)
