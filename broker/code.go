package broker

import (
	"encoding/base64"
)

// A code stands for a few bytes, such as the id of a request, and reveals nothing about
// them. Only a holder of a seal key can make or read one, so a code needs no row: it works
// on every replica and after a restart. Codes of other secrets than the seal keys, and of
// other purposes, do not open.

const (
	codePurpose = "accessbroker/code/v1" // of the key that a seal key's codes are made with
	maxCode     = 512                    // characters; no content is that long
)

// Code returns a code of a content for one purpose, in base64url. Each call returns another
// one. A key may make 2^32 codes; the broker makes one for each request that waits for people.
func (s *Sealer) Code(purpose string, content []byte) string {
	return base64.RawURLEncoding.EncodeToString(s.keys[0].codes.Seal(nil, nil, content, []byte(purpose)))
}

// ReadCode returns the content of a code that one of the keys made for the purpose.
func (s *Sealer) ReadCode(purpose, code string) (content []byte, ok bool) {
	if len(code) > maxCode {
		return nil, false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(code)
	if err != nil {
		return nil, false
	}
	for _, key := range s.keys {
		if content, err := key.codes.Open(nil, nil, raw, []byte(purpose)); err == nil {
			return content, true
		}
	}
	return nil, false
}
