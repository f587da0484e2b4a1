package broker

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
)

// A code stands for a few bytes, such as the id of a request, and reveals nothing about
// them. Only a holder of a seal key can make or read one, so a code needs no row: it works
// on every replica and after a restart. Codes of other secrets than the seal keys, and of
// other purposes, do not open.
//
// The construction is that of SIV (RFC 5297, section 2) with HMAC-SHA-256 as the
// pseudorandom function: the MAC of the content is also the nonce of its encryption, so
// that equal contents have equal codes and no nonce can repeat for different ones.

// codeKey makes and reads codes. Its keys are derived from a seal key.
type codeKey struct {
	mac   []byte
	block cipher.Block
}

const (
	codeMAC = sha256.Size
	maxCode = 512 // characters; no content is that long
)

func newCodeKey(seal []byte) (codeKey, error) {
	mac, err := hkdf.Key(sha256.New, seal, nil, "accessbroker/code/v1 mac", sha256.Size)
	if err != nil {
		return codeKey{}, err
	}
	key, err := hkdf.Key(sha256.New, seal, nil, "accessbroker/code/v1 encryption", SealKeySize)
	if err != nil {
		return codeKey{}, err
	}
	block, err := aes.NewCipher(key)
	return codeKey{mac, block}, err
}

// sum returns the MAC of a content for a purpose.
func (k codeKey) sum(purpose string, content []byte) []byte {
	h := hmac.New(sha256.New, k.mac)
	_ = binary.Write(h, binary.BigEndian, uint64(len(purpose))) // a hash never fails
	h.Write([]byte(purpose))
	h.Write(content)
	return h.Sum(nil)
}

// crypt encrypts or decrypts the content in place.
func (k codeKey) crypt(mac, content []byte) {
	cipher.NewCTR(k.block, mac[:aes.BlockSize]).XORKeyStream(content, content)
}

// Code returns the code of a content for one purpose, in base64url.
func (s *Sealer) Code(purpose string, content []byte) string {
	k := s.keys[0].code
	out := append(k.sum(purpose, content), content...)
	k.crypt(out[:codeMAC], out[codeMAC:])
	return base64.RawURLEncoding.EncodeToString(out)
}

// ReadCode returns the content of a code that one of the keys made for the purpose.
func (s *Sealer) ReadCode(purpose, code string) (content []byte, ok bool) {
	if len(code) > maxCode {
		return nil, false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(code)
	if err != nil || len(raw) <= codeMAC {
		return nil, false
	}
	content = make([]byte, len(raw)-codeMAC)
	for _, key := range s.keys {
		copy(content, raw[codeMAC:])
		key.code.crypt(raw[:codeMAC], content)
		if hmac.Equal(raw[:codeMAC], key.code.sum(purpose, content)) {
			return content, true
		}
	}
	return nil, false
}
