package audit

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// A Checkpoint says what a log held at some time: C2SP tlog-checkpoint.
type Checkpoint struct {
	Origin string // names the log, as does its key
	Size   int64  // number of records
	Root   Digest // of the tree over them
}

// String gives the text that is signed: origin, size and root, a line each.
func (c Checkpoint) String() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// parseCheckpoint reads a checkpoint's text. Extension lines are allowed, and
// ignored, as the specification says.
func parseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) < 4 || lines[0] == "" {
		return Checkpoint{}, errors.New("a checkpoint has three lines: origin, size and root")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return Checkpoint{}, fmt.Errorf("the checkpoint's size %q is not a decimal number", lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != len(Digest{}) {
		return Checkpoint{}, errors.New("the checkpoint's root is not the base64 of 32 bytes")
	}
	return Checkpoint{lines[0], size, Digest(root)}, nil
}

// NewOrigin makes the name of a new log: the broker's home, without scheme,
// "/log/", and eight random characters, so that no two logs ever share a name.
func NewOrigin(host string) string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails
	return host + "/log/" + strings.ToLower(base32.HexEncoding.EncodeToString(b[:]))
}

// A Signer signs the checkpoints of one log. It is safe for concurrent use.
type Signer struct{ signer note.Signer }

// NewLogKey makes an Ed25519 key for the log of that origin. secret is what
// NewSigner reads, and goes nowhere but into a sealed row; public is what
// verifiers are given. Both are in the encoding of signed notes.
func NewLogKey(origin string) (secret, public string, err error) {
	secret, public, err = note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return "", "", fmt.Errorf("making the log's key: %w", err)
	}
	if _, err := NewSigner(secret); err != nil { // an origin with a space or a plus sign
		return "", "", err
	}
	return secret, public, nil
}

// NewSigner reads the secret that NewLogKey made. Its errors don't repeat it.
func NewSigner(secret string) (*Signer, error) {
	s, err := note.NewSigner(secret)
	if err != nil {
		return nil, errors.New("reading the log's key: it is not a signed-note key, or its origin has a space or a plus sign")
	}
	return &Signer{s}, nil
}

// Origin names the log that the signer signs for.
func (s *Signer) Origin() string { return s.signer.Name() }

// Sign gives the checkpoint as a signed note. It refuses those of other logs.
func (s *Signer) Sign(c Checkpoint) ([]byte, error) {
	if c.Origin != s.Origin() {
		return nil, fmt.Errorf("signing a checkpoint: it is of %q, the key of %q", c.Origin, s.Origin())
	}
	signed, err := note.Sign(&note.Note{Text: c.String()}, s.signer)
	if err != nil {
		return nil, fmt.Errorf("signing a checkpoint: %w", err)
	}
	return signed, nil
}

// CheckKey says whether a text is the public key of a log at all.
func CheckKey(public string) error {
	if _, err := note.NewVerifier(public); err != nil {
		return errors.New("it is not the public key of a log: those look like broker.acme.test/log/1a2b3c4d+0011aabb+AQ…")
	}
	return nil
}

// CheckForm says whether a text is a signed checkpoint at all, of whatever log
// and whoever signed it.
func CheckForm(signed []byte) error {
	var unverified *note.UnverifiedNoteError
	if _, err := note.Open(signed, note.VerifierList()); !errors.As(err, &unverified) {
		return errors.New("it is not a signed checkpoint, as /log/checkpoint gives them")
	}
	_, err := parseCheckpoint(unverified.Note.Text)
	return err
}

// OpenCheckpoint verifies a signed note by the log's public key and gives the
// checkpoint in it. The key names the log: a checkpoint of another is an error.
func OpenCheckpoint(signed []byte, public string) (Checkpoint, error) {
	verifier, err := note.NewVerifier(public)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("reading the log's public key: %w", err)
	}
	n, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("opening a checkpoint by the key of %s: %w", verifier.Name(), err)
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("opening a checkpoint: %w", err)
	}
	if c.Origin != verifier.Name() {
		return Checkpoint{}, fmt.Errorf("opening a checkpoint: it is of %q, the key of %q", c.Origin, verifier.Name())
	}
	return c, nil
}
