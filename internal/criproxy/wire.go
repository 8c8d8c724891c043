package criproxy

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/thaw-project/thaw/internal/oci"
)

// wireAuth is CRI's AuthConfig: runtime.v1 in
// https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto.
type wireAuth struct {
	username, password, auth, serverAddress, identityToken, registryToken string
}

// Field numbers of PullImageRequest, ImageSpec and AuthConfig.
const (
	pullImage = 1
	pullAuth  = 2

	specImage = 1

	authUsername      = 1
	authPassword      = 2
	authAuth          = 3
	authServerAddress = 4
	authIdentityToken = 5
	authRegistryToken = 6
)

// fields calls set for each field of a message that is a string or a message. All
// others, and those that set does not know, are passed over.
func fields(b []byte, set func(num protowire.Number, value []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("decode message: %w", protowire.ParseError(n))
		}
		b = b[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return fmt.Errorf("decode message: %w", protowire.ParseError(n))
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return fmt.Errorf("decode message: %w", protowire.ParseError(n))
		}
		if err := set(num, value); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// decodePull reads a PullImageRequest.
func decodePull(b []byte) (image string, auth wireAuth, err error) {
	err = fields(b, func(num protowire.Number, value []byte) error {
		switch num {
		case pullImage:
			return fields(value, func(num protowire.Number, value []byte) error {
				if num == specImage {
					image = string(value)
				}
				return nil
			})
		case pullAuth:
			return fields(value, auth.set)
		}
		return nil
	})
	return image, auth, err
}

func (a *wireAuth) set(num protowire.Number, value []byte) error {
	into := map[protowire.Number]*string{authUsername: &a.username, authPassword: &a.password, authAuth: &a.auth,
		authServerAddress: &a.serverAddress, authIdentityToken: &a.identityToken, authRegistryToken: &a.registryToken}[num]
	if into != nil {
		*into = string(value)
	}
	return nil
}

// credentials says what containerd will make of it: of several the first of name
// and password, identity token, and both in auth; none for another host than the
// image's.
func (p *pull) credentials() (authn.AuthConfig, error) {
	a := p.auth
	if a.serverAddress != "" && hostOf(a.serverAddress) != p.host {
		return authn.AuthConfig{}, nil
	}
	switch {
	case a.username != "":
		return authn.AuthConfig{Username: a.username, Password: a.password}, nil
	case a.identityToken != "":
		return authn.AuthConfig{IdentityToken: a.identityToken}, nil
	case a.auth != "":
		b, err := base64.StdEncoding.DecodeString(a.auth)
		user, password, ok := strings.Cut(string(b), ":")
		if err != nil || !ok {
			return authn.AuthConfig{}, errors.New("decode auth: it is not USER:PASSWORD in base64")
		}
		return authn.AuthConfig{Username: user, Password: strings.Trim(password, "\x00")}, nil
	case a.registryToken != "":
		return authn.AuthConfig{RegistryToken: a.registryToken}, nil
	}
	return authn.AuthConfig{}, nil
}

// hostOf is the host of a server address, which may be a URL. Docker's own is
// docker.io's.
func hostOf(address string) string {
	address = strings.TrimPrefix(strings.TrimPrefix(address, "https://"), "http://")
	host, _, _ := strings.Cut(address, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		return oci.DockerHub
	}
	return host
}
