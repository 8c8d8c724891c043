// Package registry reads and writes images: in OCI distribution registries over
// HTTP, and in OCI layouts on disk, behind the one small interface [Repository].
//
// Its model: a [Client] holds what is shared by a whole process (connections,
// tokens, limits per host); a Repository is one name in one registry. Reads go to
// the configured mirrors in order and then to the origin. Every operation runs
// under one rule: it goes on as long as bytes come, starts again from where it
// broke off, and gives up with an [Error] that says whether trying later is worth
// it when nothing came for [Options.GiveUp]. The context ends it sooner. HTTP is
// a chain of RoundTrippers, outermost first:
//
//	auth    tokens and passwords, for the registry's own host only
//	limit   requests in flight a host; slows down on 429, pauses on Retry-After
//	stall   cuts a request that sends nothing for Options.IdleTimeout
//	log     one debug line a request; counts requests and bytes
//	lanes   several connection pools, so that parallel ranges of an HTTP/2 host
//	        do not share one capped connection
//
// Retrying is not in the chain: a body that breaks halfway must be resumed under
// the same budget as a request that was refused, so it is around it (budget).
//
// Manifests and whole blobs are verified against their digest. A range cannot be:
// [Repository.ReadRange] gives the bytes the server declared to be that range, and
// its caller verifies them (and, when they are wrong, asks again with [FromOrigin]).
//
// It deliberately does not cache content, does not decode layers, does not mount
// blobs across repositories and does not delete.
//
// Specifications: https://github.com/opencontainers/distribution-spec/blob/main/spec.md,
// https://distribution.github.io/distribution/spec/auth/token/ and, for ranges,
// RFC 9110 section 14.
package registry
