package dpop

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// All nonces of a step are equal. A nonce is accepted during its own step, in the steps
// after it, and, because the clocks of replicas differ, in the one before it.
const (
	nonceStep  = time.Minute
	nonceSteps = 5 // after its own
)

const (
	nonceKey  = "accessbroker/dpop-nonce/v1"
	stepSize  = 4
	nonceSize = stepSize + 16 // and the MAC
)

// nonces makes and checks nonces. They are unpredictable without the keys (RFC 9449, section
// 8), and a broker with another URL or other keys does not accept them.
type nonces struct {
	keys   [][]byte
	latest atomic.Pointer[nonce] // of the current step
}

type nonce struct {
	step uint32
	text string
}

func newNonces(secrets [][]byte, issuer string) (*nonces, error) {
	if len(secrets) == 0 {
		return nil, errors.New("nonces need a secret")
	}
	n := &nonces{}
	for _, secret := range secrets {
		key, err := hkdf.Key(sha256.New, secret, nil, nonceKey+"\n"+issuer, sha256.Size)
		if err != nil {
			return nil, fmt.Errorf("deriving the key of nonces: %w", err)
		}
		n.keys = append(n.keys, key)
	}
	return n, nil
}

func stepOf(now time.Time) uint32 { return uint32(now.Unix() / int64(nonceStep/time.Second)) }

func (n *nonces) current(now time.Time) string {
	step := stepOf(now)
	if known := n.latest.Load(); known != nil && known.step == step {
		return known.text
	}
	made := &nonce{step, base64.RawURLEncoding.EncodeToString(seal(n.keys[0], step))}
	n.latest.Store(made)
	return made.text
}

// seal returns the nonce of a step.
func seal(key []byte, step uint32) []byte {
	mac := hmac.New(sha256.New, key)
	b := binary.BigEndian.AppendUint32(make([]byte, 0, stepSize+sha256.Size), step)
	mac.Write(b)
	return mac.Sum(b)[:nonceSize]
}

// accept reports whether a nonce is one of the broker's and current, and returns when no
// replica accepts it any longer.
func (n *nonces) accept(text string, now time.Time) (until time.Time, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != nonceSize {
		return time.Time{}, false
	}
	step, at := binary.BigEndian.Uint32(b), stepOf(now)
	if int64(step) > int64(at)+1 || int64(step)+nonceSteps < int64(at) {
		return time.Time{}, false
	}
	for _, key := range n.keys {
		if hmac.Equal(b, seal(key, step)) {
			end := (int64(step) + nonceSteps + 2) * int64(nonceStep/time.Second) // by the slowest clock
			return time.Unix(end, 0), true
		}
	}
	return time.Time{}, false
}
