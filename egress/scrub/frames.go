package scrub

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

// Errors of Frames.
var (
	ErrFrame     = errors.New("the server sent a WebSocket frame that breaks RFC 6455")
	ErrExtension = errors.New("the server sent a WebSocket frame of an extension, such as compression, that cannot be searched for the credential")
)

// The parts of the first bytes of a frame (RFC 6455, section 5.2).
const (
	finalBit    = 0x80
	reserved    = 0x70
	opcodeBits  = 0x0f
	controlBit  = 0x08
	maskedBit   = 0x80
	lengthBits  = 0x7f
	maxControl  = 125
	continued   = 0
	closeOpcode = 8
)

// maxFrame is the size of the frames that Frames writes. A longer frame becomes several
// ones, as section 5.4 of RFC 6455 allows without extensions.
const maxFrame = 32 << 10

// Frames copies the WebSocket frames of a server from src to dst without the secrets. It
// finds a secret that is spread over the fragments of a message. A message that ends
// within a secret loses at least [MinLength] bytes of it, as does the next one at its
// start; so a secret that is spread over messages in smaller parts passes.
//
// It returns nil after a close frame, and refuses extensions.
func (s *Scrubber) Frames(dst io.Writer, src io.Reader) error {
	f := &frames{s: s, in: newFrameReader(src), dst: dst}
	for {
		closed, err := f.next()
		if closed || err != nil {
			return err
		}
	}
}

func newFrameReader(src io.Reader) *bufio.Reader { return bufio.NewReaderSize(src, maxFrame) }

// frames is the copy of one direction.
type frames struct {
	s   *Scrubber
	in  *bufio.Reader
	dst io.Writer
	out []byte

	scan   scan
	held   []byte // of the message, not yet written
	opcode byte   // of the next frame that is written of the message
	open   bool   // a message has begun
	cut    bool   // the message before ended within a secret
}

// A frame is the header of a frame.
type frame struct {
	final  bool
	opcode byte
	length uint64
}

func (f *frames) next() (closed bool, err error) {
	h, err := f.header()
	if err != nil {
		return false, err
	}
	if h.opcode&controlBit != 0 {
		return h.opcode == closeOpcode, f.control(h)
	}
	if (h.opcode == continued) != f.open {
		return false, ErrFrame
	}
	if !f.open {
		f.open, f.opcode = true, h.opcode
		f.scan = scan{spans: f.scan.spans[:0], partial: f.cut}
	}
	return false, f.data(h)
}

// header reads the header of a frame. A server does not mask (section 5.1).
func (f *frames) header() (h frame, err error) {
	var b [8]byte
	if _, err := io.ReadFull(f.in, b[:2]); err != nil {
		return h, err // io.EOF: between two frames
	}
	h = frame{final: b[0]&finalBit != 0, opcode: b[0] & opcodeBits, length: uint64(b[1] & lengthBits)}
	switch {
	case b[0]&reserved != 0:
		return h, ErrExtension
	case b[1]&maskedBit != 0, h.opcode > 2 && h.opcode < 8, h.opcode > 10:
		return h, ErrFrame
	case h.opcode&controlBit != 0:
		if !h.final || h.length > maxControl {
			return h, ErrFrame
		}
		return h, nil
	case h.length == 126:
		_, err = io.ReadFull(f.in, b[:2])
		h.length = uint64(binary.BigEndian.Uint16(b[:]))
	case h.length == 127:
		_, err = io.ReadFull(f.in, b[:])
		h.length = binary.BigEndian.Uint64(b[:])
	}
	if err == nil && h.length>>63 != 0 {
		err = ErrFrame
	}
	return h, unexpected(err)
}

// unexpected turns the end of the stream within a frame into an error.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// control copies a control frame, which can stand between the fragments of a message.
func (f *frames) control(h frame) error {
	payload := make([]byte, h.length)
	if _, err := io.ReadFull(f.in, payload); err != nil {
		return unexpected(err)
	}
	skip := 0
	if h.opcode == closeOpcode {
		skip = min(2, len(payload)) // the status code
	}
	clean := f.s.String(string(payload[skip:]))
	return f.write(finalBit|h.opcode, append(payload[:skip:skip], clean...))
}

// data copies a frame of a message, and writes what can be written of it.
func (f *frames) data(h frame) error {
	for left := h.length; ; {
		n := int(min(left, maxFrame))
		start := len(f.held)
		if start > maxHeld {
			return ErrHeld
		}
		f.held = append(f.held, make([]byte, n)...)
		if _, err := io.ReadFull(f.in, f.held[start:]); err != nil {
			return unexpected(err)
		}
		left -= uint64(n)
		if err := f.flush(h.final && left == 0); err != nil {
			return err
		}
		if left == 0 {
			return nil
		}
	}
}

// flush writes the part of the message that begins no secret, as one frame.
func (f *frames) flush(last bool) error {
	f.scan.s, f.scan.last = f.s.now(), last
	ready := f.scan.run(f.held)
	if ready == 0 && !last {
		return nil
	}
	f.cut = last && f.scan.maskedTo(ready)
	f.scan.advance(ready)
	f.scan.hide(ready)
	first := f.opcode
	if last {
		first |= finalBit
	}
	err := f.write(first, f.held[:ready])
	f.held = f.held[:copy(f.held, f.held[ready:])]
	f.opcode, f.open = continued, !last
	return err
}

// write writes a frame.
func (f *frames) write(first byte, payload []byte) error {
	b := append(f.out[:0], first)
	switch n := len(payload); {
	case n <= maxControl:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	f.out = append(b, payload...)
	_, err := f.dst.Write(f.out)
	return err
}
