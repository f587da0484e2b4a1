package scrub

import (
	"encoding/binary"
	"math/bits"
)

// maxWindow bounds the bytes from the start of a needle that the index knows.
const maxWindow = 16

// An index finds the places of a text at which a needle may occur.
//
// An occurrence either starts with a whole window of the needle as it is, or has its
// first escape or line break within the window. The former are found by skipping through
// the text as Wu and Manber do ("A fast algorithm for multi-pattern searching", 1994),
// with blocks of four bytes. The latter are found at the escapes: the bytes before an
// escape and the byte that it stands for are a key of the table pieces.
type index struct {
	window int
	wraps  bool // some needle can have line breaks

	skips    []uint8 // by the hash of a block: how far the window can move
	skipBits int
	windows  table // needles by the last block of their window
	starts   table // needles by their first block
	pieces   table // places in needles by the bytes up to them

	short  []uint64 // a set of the first one, two and three bytes of needles
	wanted [256]bool
}

// A table maps the hash of a key to chains of places in needles.
type table struct {
	heads []int32 // the place plus one
	shift int
	list  []place
}

// A place is a byte of a needle.
type place struct {
	key    uint32
	next   int32 // the next place with the same hash, plus one
	needle int32
	k      int32
}

func newTable(places int) table {
	b := max(bits.Len(uint(2*places)), 4)
	return table{heads: make([]int32, 1<<b), shift: 32 - b, list: make([]place, 0, places)}
}

func (t *table) add(key uint32, needle, k int) {
	head := &t.heads[hash(key)>>t.shift]
	t.list = append(t.list, place{key, *head, int32(needle), int32(k)})
	*head = int32(len(t.list))
}

// first returns the start of the chain of a key.
func (t *table) first(key uint32) int32 { return t.heads[hash(key)>>t.shift] }

// hash spreads a key over 32 bits.
func hash(key uint32) uint32 { return key * 0x9e3779b1 }

// block returns four bytes as a key that is the same for both cases of letters.
func block(b []byte) uint32 { return binary.LittleEndian.Uint32(b) | 0x20202020 }

// Keys of pieces have the place in the needle, if it is one of the first two.
const (
	firstByte  = 1 << 24
	secondByte = 2 << 24
	laterByte  = 3 << 24
)

func pair(kind uint32, a, b byte) uint32 { return kind | uint32(a)<<8 | uint32(b) }

func triple(a, b, c byte) uint32 {
	return laterByte | uint32(a)<<16 | uint32(b)<<8 | uint32(c)
}

func newIndex(list []needle) *index {
	x := &index{window: maxWindow}
	for _, n := range list {
		x.window = min(x.window, len(n.text))
		x.wraps = x.wraps || n.wrapped
	}
	x.skipBits = min(max(bits.Len(uint(len(list)*x.window*8)), 12), 20)
	x.skips = make([]uint8, 1<<x.skipBits)
	for i := range x.skips {
		x.skips[i] = uint8(x.window - 3)
	}
	x.windows, x.starts = newTable(len(list)), newTable(len(list))
	x.pieces = newTable(len(list) * x.window)
	x.short = make([]uint64, 1<<bits.Len(uint(len(list))))
	for i, n := range list {
		x.add(i, n.text[:x.window])
	}
	return x
}

func (x *index) add(i int, window []byte) {
	for end := 4; end <= len(window); end++ {
		skip := &x.skips[hash(block(window[end-4:]))>>(32-x.skipBits)]
		*skip = min(*skip, uint8(len(window)-end))
	}
	x.windows.add(block(window[len(window)-4:]), i, 0)
	x.starts.add(block(window), i, 0)
	x.pieces.add(pair(firstByte, window[0], window[1]), i, 0)
	x.pieces.add(pair(secondByte, window[0], window[1]), i, 1)
	for k := 2; k < len(window); k++ {
		x.pieces.add(triple(window[k-2], window[k-1], window[k]), i, k)
	}
	for n := 1; n <= 3; n++ {
		at := x.shortAt(window[:n])
		x.short[at>>6] |= 1 << (at & 63)
	}
	for _, c := range window {
		x.wanted[c] = true
	}
}

// shortAt returns the place of up to three bytes in the set of short starts.
func (x *index) shortAt(b []byte) uint32 {
	key := uint32(len(b)) << 24
	for i, c := range b {
		key |= uint32(fold[c]) << (8 * i)
	}
	return hash(key) >> (32 - bits.Len(uint(len(x.short)*64)-1))
}

func (x *index) startsShort(b []byte) bool {
	at := x.shortAt(b)
	return x.short[at>>6]&(1<<(at&63)) != 0
}

// equal reports whether a text is equal to lower-case text, in either case.
func equal(text, want []byte) bool {
	for i, c := range want {
		if fold[text[i]] != c {
			return false
		}
	}
	return true
}
