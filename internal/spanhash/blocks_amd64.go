package spanhash

// accelerated says that the CPU has SHA256RNDS2 and what blocks needs besides.
var accelerated = hasSHA()

// hasSHA asks CPUID for SHA, SSSE3 and SSE4.1.
func hasSHA() bool

// blocks hashes p, whole blocks of 64 bytes, on from two states.
//
//go:noescape
func blocks(a, b *[8]uint32, p []byte)
