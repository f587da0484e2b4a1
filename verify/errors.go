package verify

import (
	"errors"
	"fmt"
)

// The errors of this package wrap one of these. Their texts are safe to show to callers: they
// contain no part of a token or a proof.
var (
	// ErrNoToken means that the call has no access token.
	ErrNoToken = errors.New("no access token")

	// ErrInvalidRequest means that the call is malformed, for example that it has two tokens.
	ErrInvalidRequest = errors.New("invalid request")

	// ErrInvalidToken means that the token is not acceptable, whoever presents it.
	ErrInvalidToken = errors.New("invalid token")

	// ErrInsufficientScope means that the token is valid, but not for this call.
	ErrInsufficientScope = errors.New("insufficient scope")

	// ErrInvalidProof means that the caller did not prove to have the key of the token.
	ErrInvalidProof = errors.New("invalid DPoP proof")

	// ErrUseNonce means that the DPoP proof needs a nonce of this service.
	ErrUseNonce = errors.New("the DPoP proof needs a nonce")

	// ErrUnavailable means that the token can't be checked now: the issuer does not answer.
	ErrUnavailable = errors.New("the issuer is not available")
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalidToken, fmt.Sprintf(format, args...))
}

func badProof(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalidProof, fmt.Sprintf(format, args...))
}

func unavailable(doing string, err error) error {
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, doing, err)
}
