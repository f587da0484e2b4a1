// Package visible finds the characters of a text that its reader would not see, or that
// would change how the reader sees others. Pages, messages and terminals name or remove
// them in texts of other parties.
package visible

import "unicode"

// blank are graphic characters without ink, and selectors that are used to hide data in
// a text.
var blank = &unicode.RangeTable{
	R16: []unicode.Range16{
		{Lo: 0x034f, Hi: 0x034f, Stride: 1}, {Lo: 0x115f, Hi: 0x1160, Stride: 1}, {Lo: 0x17b4, Hi: 0x17b5, Stride: 1}, {Lo: 0x180b, Hi: 0x180f, Stride: 1},
		{Lo: 0x2800, Hi: 0x2800, Stride: 1}, {Lo: 0x3164, Hi: 0x3164, Stride: 1}, {Lo: 0xffa0, Hi: 0xffa0, Stride: 1}, {Lo: 0xfffd, Hi: 0xfffd, Stride: 1},
	},
	R32: []unicode.Range32{{Lo: 0xe0000, Hi: 0xe0fff, Stride: 1}},
}

// Rune reports whether a reader sees a character as one character in its place, after
// another. Joiners are part of the spelling of some scripts and of emoji: they may follow
// those, but not ASCII. Line breaks and tabs are not visible.
func Rune(r, before rune) bool {
	switch {
	case r == '\u200c', r == '\u200d':
		return before > unicode.MaxLatin1 && unicode.In(before, unicode.L, unicode.M, unicode.So, unicode.Sk)
	case unicode.Is(blank, r):
		return false
	}
	return unicode.IsGraphic(r)
}
