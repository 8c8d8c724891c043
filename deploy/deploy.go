// Package deploy has the files that put thaw onto a host, for thaw install.
package deploy

import _ "embed"

// Unit is thaw.service; UnitContainerd is a drop-in for it, with @SOCKET@ in
// the place of the socket for containerd, @ADDRESS@ and @ROOT@ in those of the
// flags for another socket of containerd's and another state directory.
var (
	//go:embed systemd/thaw.service
	Unit []byte
	//go:embed systemd/containerd.conf
	UnitContainerd []byte
)
