// Package softkey is a software WebAuthn authenticator for tests. It has one ES256 key,
// and Key.Flags states whether it verified its user.
package softkey

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
)

// Flags of authenticator data (Web Authentication Level 3, section 6.1).
const (
	Present  = 1 << 0
	Verified = 1 << 2
	attested = 1 << 6
)

// A Key is an authenticator with one passkey.
type Key struct {
	ID      []byte
	RP      string // the relying party's id
	Origin  string // of the page that uses it
	Flags   byte   // of the signed authenticator data
	Counter uint32 // of signatures; zero: not supported
	private *ecdsa.PrivateKey
}

// New returns an authenticator with a new key.
func New(rp, origin string) (*Key, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	id := make([]byte, 32)
	_, _ = rand.Read(id) // never fails
	return &Key{ID: id, RP: rp, Origin: origin, Flags: Present | Verified, private: private}, nil
}

// Public returns the public key as a SubjectPublicKeyInfo.
func (k *Key) Public() ([]byte, error) { return x509.MarshalPKIXPublicKey(&k.private.PublicKey) }

func (k *Key) clientData(kind string, challenge []byte) ([]byte, error) {
	return json.Marshal(map[string]any{
		"type": kind, "challenge": base64.RawURLEncoding.EncodeToString(challenge), "origin": k.Origin, "crossOrigin": false,
	})
}

func (k *Key) data(flags byte) []byte {
	rpIDHash := sha256.Sum256([]byte(k.RP))
	return binary.BigEndian.AppendUint32(append(rpIDHash[:], flags), k.Counter)
}

// Sign returns an assertion (section 7.2).
func (k *Key) Sign(challenge []byte) (authenticatorData, clientData, signature []byte, err error) {
	if k.Counter > 0 {
		k.Counter++
	}
	authenticatorData = k.data(k.Flags)
	if clientData, err = k.clientData("webauthn.get", challenge); err != nil {
		return nil, nil, nil, err
	}
	hash := sha256.Sum256(clientData)
	signed := sha256.Sum256(append(append([]byte{}, authenticatorData...), hash[:]...))
	signature, err = ecdsa.SignASN1(rand.Reader, k.private, signed[:])
	return authenticatorData, clientData, signature, err
}

// Create returns the response to navigator.credentials.create as JSON (section 5.1),
// without attestation.
func (k *Key) Create(challenge []byte) ([]byte, error) {
	clientData, err := k.clientData("webauthn.create", challenge)
	if err != nil {
		return nil, err
	}
	point, err := k.private.PublicKey.Bytes() // 4, x, y
	if err != nil {
		return nil, err
	}
	data := append(k.data(k.Flags|attested), make([]byte, 16)...) // AAGUID
	data = append(binary.BigEndian.AppendUint16(data, uint16(len(k.ID))), k.ID...)
	data = append(data, 0xa5, 1, 2, 3, 0x26, 0x20, 1, 0x21, 0x58, 32) // COSE: kty EC2, alg ES256, crv P-256, x (RFC 9053)
	data = append(append(data, point[1:33]...), 0x22, 0x58, 32)       // y
	data = append(data, point[33:]...)
	object := append([]byte{0xa3, 0x63}, "fmt\x64none\x67attStmt\xa0\x68authData\x58"...) // CBOR (RFC 8949)
	object = append(append(object, byte(len(data))), data...)
	encode := base64.RawURLEncoding.EncodeToString
	return json.Marshal(map[string]any{
		"id": encode(k.ID), "rawId": encode(k.ID), "type": "public-key", "clientExtensionResults": map[string]any{},
		"response": map[string]any{"clientDataJSON": encode(clientData), "attestationObject": encode(object), "transports": []string{"internal"}},
	})
}
