"""Endings of sound and video files: which are looked at, and which are known but cannot be read. A catalogue.

An ending says only whether a file is worth opening. What is in it, and so which decoder reads it, its content says.
"""

from __future__ import annotations


def _endings(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


SOUNDFILE_SUFFIXES = _endings(
    # Chunks of samples: Microsoft, Apple, Sun, Sony, Amiga, and Broadcast Wave.
    "wav wave bwf bwav rf64 w64 aif aiff aifc afc au snd caf 8svx 16sv svx iff "
    # Compressed.
    "flac fla ogg oga opus mp3 mp2 mp1 mpa mpga m2a "
    # Of laboratories and of old machines.
    "voc nist sph ircam sf paf pvf htk avr xi wve"
)
"""What libsndfile reads."""

PYAV_SUFFIXES = _endings(
    # MPEG-4 and its relatives.
    "m4a m4b m4r m4v mp4 mp4a mov qt f4v f4a 3gp 3gpp 3g2 3gpp2 ismv isma "
    # Matroska, Ogg, and other containers of sound with pictures.
    "mkv mka mk3d webm weba ogv ogx ogm avi divx wmv asf flv nut mxf gxf rm rmvb ra wtv dv "
    # MPEG streams, of cameras, discs and television.
    "mpg mpeg mpe vob ts mts m2t m2ts tod trp "
    # Sound alone.
    "aac adts latm loas ac3 eac3 ec3 dts dtshd mlp thd truehd wma xwma amr awb spx ape wv tta mpc mp+ tak shn dsf dff oma aa3 "
    "at3 vqf qcp adx dss qoa sds"
)
"""What only PyAV (extra `audio`) reads."""

AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | PYAV_SUFFIXES
"""All endings whose files are looked at, in small letters, with the dot."""

UNREADABLE_SUFFIXES = _endings(
    # Notes to be played, not sound.
    "mid midi kar rmi smf mod xm it s3m mtm stm mptm musicxml mxl "
    # Locked to a shop or to a device.
    "m4p aax aaxc aa dvf msv ds2 "
    # Samples without a header: nobody can know their rate and layout.
    "raw pcm sd2 vox g721 g722 g723 g726 g729 gsm ulaw alaw sln "
    # Instruments and loops.
    "sf2 sf3 sfz nki nkx gig dls rx2 rex rcy krz akp "
    # Projects, which name sounds that lie elsewhere.
    "aup aup3 als flp ptx ptf logicx band cpr rpp sesx omf aaf "
    # No open decoder.
    "ofr ofs la lqt swf cda"
)
"""Endings of sound and music that cannot be read, so that such files are counted and listed, not passed over in silence."""
