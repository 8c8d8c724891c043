//go:build !amd64

package inflate

var useAsm = false

func symbolsAsm(d *inflater, lastIn, lastOut int) (why stop, length, distance int) {
	return symbolsGo(d, lastIn, lastOut)
}
